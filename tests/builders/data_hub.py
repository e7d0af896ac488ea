"""A stand-in for the hub's data sets, over real HTTP: what huggingface_hub asks for to list and read files."""

import hashlib
import io
import json
import re
import time
from urllib.parse import unquote

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet

from builders.stand_in import Hub

MAIN, CONVERTED = "main", "refs/convert/parquet"
ROW_GROUP = 4


class DataHub(Hub):
    """`put` data sets; those in `gated` let nobody in, and `served` counts bytes of files.

    Files that hold `refused` in their names are not given, those that hold `held` not yet.
    """

    def __init__(self):
        super().__init__()
        self.branches, self.commits, self.gated, self.served = {}, {}, set(), 0
        self.refused = self.held = None

    def put(self, name, files, branch=MAIN, licence=None):
        """Commit files, name -> bytes, to a branch; returns the commit."""
        if licence and branch == MAIN:
            files = {**files, "README.md": f"---\nlicense: {licence}\n---\n".encode()}
        hashed = [(file, hashlib.sha1(content).hexdigest()) for file, content in sorted(files.items())]
        commit = hashlib.sha1(json.dumps([name, branch, hashed]).encode()).hexdigest()
        self.branches[name, branch] = commit
        self.commits[name, commit] = (files, licence)
        return commit

    def settings(self, cache):
        """Constants of huggingface_hub by which it asks here, and keeps files in a cache."""
        return {
            "ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": True,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        }

    def use(self, monkeypatch, cache):
        """Let this process ask here."""
        for name, value in self.settings(cache).items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)

    def code(self, cache):
        """The same for another process: what it is to run first."""
        lines = (f"constants.{name} = {value!r}" for name, value in self.settings(cache).items())
        return "\n".join(("from huggingface_hub import constants", *lines))

    def handle(self, method, path, body, headers):
        path = unquote(path.split("?")[0])
        if "/datasets/" not in path:  # what else the client asks for, whose answer it does not need
            return 404, {"error": "Not found"}
        name = re.match(r"/(?:api/)?datasets/([^/]+/[^/]+)", path)[1]
        if not any(known == name for known, _ in self.branches):
            return 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if name in self.gated:
            return 403, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"}
        revision, file = self._asked(path, name)
        commit = revision if (name, revision) in self.commits else self.branches.get((name, revision))
        if commit is None:
            return 404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"}
        files, licence = self.commits[name, commit]
        if "/tree/" in path:
            return 200, [self._about(one, files[one]) for one in files if one.startswith(f"{file}/")]
        if "/paths-info/" in path:
            asked = re.findall(r"paths=([^&]+)", body.decode()) or json.loads(body)["paths"]
            return 200, [self._about(one, files[one]) for one in map(unquote, asked) if one in files]
        if path.startswith("/api/"):
            siblings = [{"rfilename": one, "size": len(content)} for one, content in files.items()]
            card = {"license": licence} if licence else None
            return 200, {"id": name, "sha": commit, "siblings": siblings, "cardData": card}
        if self.refused and self.refused in file:
            return 403, {"error": "Forbidden"}
        while self.held and self.held in file:
            time.sleep(0.01)
        if file not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return self._serve(method, files[file], commit, headers)

    def _asked(self, path, name):
        """Revision and file of a path."""
        if "/resolve/" in path:
            rest = path.split("/resolve/")[1]
            known = [
                one for (of, one) in [*self.branches, *self.commits] if of == name and rest.startswith(one)
            ]
            revision = known[0] if known else rest.split("/")[0]
            return revision, rest[len(revision) + 1 :]
        found = re.search(r"/(?:revision|paths-info|tree/(?P<commit>[0-9a-f]{40}))/(.+)$", path)
        if found and found["commit"]:
            return found["commit"], found[2]
        return (found[2] if found else MAIN), None

    def _about(self, file, content):
        return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _serve(self, method, content, commit, headers):
        more = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range") or "")
        status, whole = 200, len(content)
        if wanted:
            begin, end = int(wanted[1]), min(int(wanted[2] or whole - 1), whole - 1)
            status, content = 206, content[begin : end + 1]
            more["Content-Range"] = f"bytes {begin}-{end}/{whole}"
        if method == "GET":
            self.served += len(content)
        return status, content, more


def parquet(rows, features=None):
    """A parquet file as `datasets` writes it, with few rows in a group."""
    built = datasets.Dataset.from_list(rows, features)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(built.with_format("arrow")[:], buffer, row_group_size=ROW_GROUP)
    return buffer.getvalue()


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
