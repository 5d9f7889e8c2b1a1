"""The stage that turns people's judgements into a reward model."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from actors.generation.rendering import load_tokenizer
from actors.scoring.reward_head import encode_texts
from actors.sources.models import model_digest, resolve_model
from actors.sources.movie_reviews import (
    MovieReviewSplit,
    RatedSnippet,
    human_agreement,
    load_movie_reviews,
    preference_pairs,
    split_movie_reviews,
)
from cluster.processes.watchdog import Pending
from cluster.seeding import derive_seed
from cluster.storage.checkpoint import CheckpointFolder
from cluster.storage.run_directory import REWARD_MODEL_CHECKPOINTS, REWARD_MODEL_FOLDER
from learners.ranks.mailbox import CheckpointPlan
from learners.reward_model.records import ComparedTexts, RatedTexts, RewardModelJob
from learners.reward_model.training import train_reward_model
from learners.run.seating import wait_for_ranks
from learners.run.session import Session
from learners.settings.reward_model import RewardModelLearnerConfig

REWARD_MODEL_STAGE = "reward model"
METRICS_STAGE = SUMMARY_KEY = "reward_model"  # in metrics.jsonl and summary.json


def learn_reward_model(session: Session, model: str, config: RewardModelLearnerConfig, *, seed: int) -> Path:
    """A reward model from the movie-review judgements; returns its folder inside the run directory."""
    folder = session.path / REWARD_MODEL_FOLDER
    if folder.exists() and SUMMARY_KEY in session.directory.read_summary():  # a resumed run that had come so far
        return folder
    with session.stage(REWARD_MODEL_STAGE):
        snippets = split_movie_reviews(load_movie_reviews())
        job = _job(session, resolve_model(model), config, snippets, folder, seed=seed)
        progress = _Progress(session)
        wait_for_ranks(session, config.workers)
        with session.watched(progress.pending):
            result = train_reward_model(job, storage_path=session.path / "logs" / "ray_train", on_step=progress.on_step)
        agreement = human_agreement(
            snippets.held_out,
            min_gap=config.min_rating_gap,
            num_pairs=config.num_eval_pairs,
            seed=derive_seed(seed, "human agreement"),
        )
        session.directory.write_summary({SUMMARY_KEY: {**asdict(result), "human_agreement": agreement}})
        CheckpointFolder(job.checkpoints.directory).remove()  # the reward model itself is on disk, whole
        session.view.note(f"reward model: {result.accuracy:.3f} of held-out pairs right; one human rater: {agreement:.3f}")
    return folder


class _Progress:
    """Steps as they are done, into the run's records; after the loss of ranks some are done again."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._num_steps_seen = session.metrics.last_step(METRICS_STAGE)
        self._stepped_s = time.monotonic()

    def pending(self) -> list[Pending]:
        """The step, the start before it, or the evaluation after it, that the ranks work on."""
        return [Pending(whom="the reward model's ranks", what=f"step {self._num_steps_seen + 1}", since_s=self._stepped_s)]

    def on_step(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        """Write down step `step` of `num_steps`."""
        records = self._session.metrics
        if step <= self._num_steps_seen:  # lost ranks went on from a checkpoint
            records.discard(lambda line: line.get("stage") == METRICS_STAGE and line["step"] >= step, from_step=step)
        self._num_steps_seen, self._stepped_s = step, time.monotonic()
        records.log(step, metrics, stage=METRICS_STAGE)
        self._session.view.step(step, num_steps, metrics)


def _job(
    session: Session, start_model: str, config: RewardModelLearnerConfig, snippets: MovieReviewSplit, folder: Path, *, seed: int
) -> RewardModelJob:
    tokenizer = load_tokenizer(start_model)

    def encode(snippets: Sequence[RatedSnippet]) -> tuple[tuple[int, ...], ...]:
        return tuple(encode_texts(tokenizer, [snippet.text for snippet in snippets], max_tokens=config.max_tokens))

    pairs = preference_pairs(
        snippets.held_out,
        min_gap=config.min_rating_gap,
        num_pairs=config.num_eval_pairs,
        seed=derive_seed(seed, "held-out pairs"),
    )
    return RewardModelJob(
        model_path=start_model,
        train=RatedTexts(
            token_ids=encode(snippets.train),
            ratings=tuple(snippet.mean_rating for snippet in snippets.train),
        ),
        held_out=ComparedTexts(token_ids=encode(snippets.held_out), pairs=tuple(pairs)),
        config=config,
        seed=seed,
        output_dir=folder,
        checkpoints=CheckpointPlan(
            directory=(session.path / REWARD_MODEL_CHECKPOINTS).absolute(),
            keep=1,
            facts={"model": model_digest(start_model), "seed": str(seed)},
        ),
    )
