"""Ways of scheduling a simulated run: synchronous, asynchronous with bounded staleness, and taking turns on the same devices."""

from tests.experiments.control_plane import Outcome, Run


def synchronous(run: Run) -> Outcome:
    """As `learners/steps/driver.py`: collect, update, publish, and only then the next step."""
    run.on_collected = lambda step: run.learn(step, lambda: run.publish(lambda: run.ask(step + 1)))
    run.ask(0)
    return run.finish()


def asynchronous(run: Run, *, max_staleness: int) -> Outcome:
    """Groups of the next steps are asked for while the learner works, at most `max_staleness` versions ahead of it.

    What is admitted is trained on: admission paces, and nothing is discarded. Each step trains on its own prompts, so a long
    completion holds up its step while generators work ahead.
    """
    num_asked, is_updating = 0, False

    def admit() -> None:
        nonlocal num_asked
        while num_asked < min(run.workload.num_steps, run.version + max_staleness + 1):
            num_asked += 1
            run.ask(num_asked - 1)

    def update() -> None:
        nonlocal is_updating
        step = run.version
        if not is_updating and step < run.workload.num_steps and run.is_collected(step):
            is_updating = True
            run.learn(step, lambda: run.publish(updated))

    def updated() -> None:
        nonlocal is_updating
        is_updating = False
        admit()
        update()

    run.on_collected = lambda step: update()
    admit()
    return run.finish()


def taking_turns(run: Run) -> Outcome:
    """Synchronous, on devices that all generate and then all learn: `run` has each of them as a generator and as a rank."""

    def learn(step: int) -> None:
        run.learn(step, lambda: run.switch(lambda: run.publish(lambda: run.ask(step + 1))))

    run.on_collected = lambda step: run.switch(lambda: learn(step))
    run.ask(0)
    return run.finish()
