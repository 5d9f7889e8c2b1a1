"""A key that does not wait as it is told is refused without a front door, for a while; other keys are not."""

from serving.guard.keys.quota import MAX_REFUSALS, REFUSAL_WINDOW_S, RefusalBudget


class Clock:
    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


def spent(budget: RefusalBudget, *headers: str) -> list[bool]:
    return [budget.is_spent(header) for header in headers]


def test_a_budget_is_of_one_key_however_its_header_is_written() -> None:
    budget = RefusalBudget(clock=Clock())
    for _ in range(MAX_REFUSALS - 1):
        budget.note("Bearer rk_a")
    assert spent(budget, "Bearer rk_a") == [False]
    budget.note("bearer  rk_a ")
    assert spent(budget, "Bearer rk_a", "bearer rk_a", "Bearer rk_b", "Bearer", "") == [True, True, False, False, False]


def test_a_budget_lasts_for_a_window() -> None:
    clock = Clock()
    budget = RefusalBudget(clock=clock)
    for _ in range(MAX_REFUSALS):
        budget.note("Bearer rk_a")
    clock.now_s += 0.9 * REFUSAL_WINDOW_S
    assert spent(budget, "Bearer rk_a") == [True]
    clock.now_s += 0.2 * REFUSAL_WINDOW_S
    assert spent(budget, "Bearer rk_a") == [False]


def test_no_key_is_kept() -> None:
    budget = RefusalBudget(clock=Clock())
    budget.note("Bearer rk_secret")
    assert "rk_secret" not in repr(vars(budget))
