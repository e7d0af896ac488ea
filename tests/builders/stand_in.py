"""A stand-in for the hub: the endpoints that huggingface_hub calls to publish a model, over real HTTP."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_stand_in"
MINE = "mine"  # the organisation that TOKEN may write to


class Hub:
    """Use as a context manager; `repositories` is what was published: name -> private, files."""

    def __init__(self, die_at=None):
        self.repositories, self.blobs, self.calls = {}, {}, []
        self.die_at = die_at
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.calls.append(f"{self.command} {self.path}")
                if hub.die_at and re.search(hub.die_at, self.path):
                    self.connection.close()
                    return
                status, found, *more = hub.handle(self.command, self.path, body, self.headers)
                content = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **dict(*more)}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def env(self, token=TOKEN):
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        }

    def handle(self, method, path, body, headers):
        if path.startswith("/lfs/"):
            oid = path.rsplit("/", 1)[1]
            if method == "PUT":
                assert hashlib.sha256(body).hexdigest() == oid
                self.blobs[oid] = body
                return 200, {}
            return (200, {}) if json.loads(body)["size"] == len(self.blobs[oid]) else (422, {})
        if path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            return 200, {"warnings": [], "errors": [] if isinstance(front, dict) else [{"message": "?"}]}
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != MINE:
                return 403, {"error": "You don't have the rights to create a model under this namespace"}
            found = {"url": f"{self.endpoint}/{name}"}
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", **found}
            self.repositories[name] = {"private": asked.get("visibility") == "private", "files": {}}
            return 200, found
        name = re.search(r"^/(?:api/models/)?([\w-]+/[\w-]+)", path)[1]
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if path == f"/api/models/{name}":
            return 200, {"id": name, "private": self.repositories[name]["private"], "siblings": []}
        if path == f"/api/models/{name}/preupload/main":
            files = json.loads(body)["files"]
            kinds = [
                (file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular")
                for file in files
            ]
            return 200, {
                "files": [{"path": path, "uploadMode": kind, "shouldIgnore": False} for path, kind in kinds]
            }
        if path == f"/{name}.git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            actions = {"upload": "lfs", "verify": "lfs/verify"}
            return 200, {
                "transfer": "basic",
                "objects": [
                    item
                    | {
                        "actions": {
                            what: {"href": f"{self.endpoint}/{where}/{item['oid']}"}
                            for what, where in actions.items()
                        }
                    }
                    for item in objects
                ],
            }
        if path == f"/api/models/{name}/commit/main":
            files = self.repositories[name]["files"]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.blobs[value["oid"]]
                else:
                    assert line["key"] == "header"
            return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/1", "commitOid": "1" * 40}
        raise AssertionError(f"{method} {path} is not known here")
