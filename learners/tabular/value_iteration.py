"""Value iteration. Source: Sutton & Barto 2018, section 4.4, equation 4.10."""

from learners.environments.markov_model import Array, MarkovModel


def sweep(model: MarkovModel, values_S: Array, *, gamma: float) -> tuple[Array, float]:
    """Every state backed up once from the old values: (new values, largest change).

    With a largest change of c, the new values are within c * gamma / (1 - gamma) of the optimum.
    """
    new_S = model.action_values(values_S, gamma=gamma).max(axis=1)
    return new_S, float(abs(new_S - values_S).max())
