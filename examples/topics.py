"""News topics: a ranked task in one file."""

from lingualift.tasks import TASKS, Example, Task, label_of

LABELS = {"sports": "sports", "politics": "politics", "health": "health"}


class Topics(Task):
    columns = ("id", "text", "topic")
    metrics = ("accuracy", "macro_f1")
    source = "https://example.org/topics"

    def example(self, row, language):
        topic = label_of(row, "topic", LABELS)
        return Example(str(row["id"]), f"{row['text']}\nTopic:", (topic,), LABELS)


TASKS.register("topics")(Topics())
