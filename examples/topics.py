"""News topics: a ranked task in one file."""

from lingualift.tasks import TASKS, Example, Task

LABELS = {"sports": "sports", "politics": "politics", "health": "health"}


class Topics(Task):
    columns = ("id", "text")
    gold_column = "topic"
    metrics = ("accuracy", "macro_f1")
    source = "https://example.org/topics"

    def example(self, row, language):
        return Example(str(row["id"]), f"{row['text']}\nTopic:", choices=LABELS)


TASKS.register("topics")(Topics())
