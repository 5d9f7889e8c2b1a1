"""Continue a movie-review snippet from its first words."""

from collections.abc import Iterable, Sequence

from actors.config import MovieReviewTaskConfig
from actors.sources.movie_reviews import RatedSnippet, load_movie_reviews, split_movie_reviews
from actors.tasks.task_set import TaskSet
from cluster.messages import Message
from cluster.types import Task

CHAT_INSTRUCTION = "Continue this movie review: "


def build_task_sets(config: MovieReviewTaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out), along the split that the reward model is trained and tested on."""
    return tasks_from_snippets(load_movie_reviews(), config)


def tasks_from_snippets(snippets: Sequence[RatedSnippet], config: MovieReviewTaskConfig) -> tuple[TaskSet, TaskSet]:
    """Return (train, held_out). A held-out beginning that also opens a training snippet is left out."""
    split = split_movie_reviews(snippets)
    train = _tasks(split.train, config)
    seen = {task.messages for task in train}
    held_out = [task for task in _tasks(split.held_out, config) if task.messages not in seen]
    return (
        TaskSet(name="movie_reviews/train", tasks=tuple(train)),
        TaskSet(name="movie_reviews/held_out", tasks=tuple(held_out)),
    )


def _tasks(snippets: Iterable[RatedSnippet], config: MovieReviewTaskConfig) -> list[Task]:
    instruction = CHAT_INSTRUCTION if config.prompt_format == "chat" else ""
    tasks = []
    for snippet in snippets:
        words = snippet.text.split()
        if len(words) < 2 * config.num_prompt_words:
            continue
        beginning = " ".join(words[: config.num_prompt_words])
        message = Message(role="user", content=instruction + beginning)
        tasks.append(Task(task_id=f"movie_reviews/{snippet.snippet_id}", messages=(message,)))
    return tasks
