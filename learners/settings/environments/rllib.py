"""Settings of RLlib's algorithms, under RLlib's own names. Defaults are for small environments on a few CPUs."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cluster.config import StrictConfig

Schedule = tuple[tuple[int, float], ...]  # pairs of (environment step, value), with straight lines between


def _checked_schedule(given: float | Schedule) -> float | Schedule:
    if isinstance(given, tuple):
        steps = [step for step, _ in given]
        if steps[:1] != [0] or len(steps) < 2 or sorted(set(steps)) != steps or not all(0 <= value <= 1 for _, value in given):
            raise ValueError(
                f"{list(given)} must be two or more pairs of (environment step, value from 0 to 1) in rising order, the first of "
                "step 0"
            )
    return given


LearningRate = Annotated[Annotated[float, Field(gt=0, lt=1)] | Schedule, AfterValidator(_checked_schedule)]


class NetworkConfig(StrictConfig):
    """The network, a multi-layer perceptron: a view of RLlib's `DefaultModelConfig`."""

    fcnet_hiddens: tuple[int, ...] = Field((64, 64), min_length=1)
    """Units of each hidden layer of the encoder."""
    fcnet_activation: Literal["tanh", "relu", "silu", "linear"] = "tanh"
    """After each hidden layer."""
    head_fcnet_hiddens: tuple[int, ...] = ()
    """Hidden layers of each head, between encoder and output."""
    vf_share_layers: bool = False
    """Of rllib_ppo and rllib_marwil: policy and value function share the encoder."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further fields of `DefaultModelConfig`, for example `conv_filters` for images."""


class RLlibConfig(StrictConfig):
    """What all of RLlib's algorithms have."""

    num_env_steps: int = Field(ge=1)
    """Environment steps to learn from, over all environments. The iteration in which they are reached is the last one."""
    grad_clip: float | None = Field(0.5, gt=0)
    """A longer gradient, in L2 norm over all parameters, is scaled down to it; None is never."""
    network: NetworkConfig = NetworkConfig()
    num_learners: int = Field(0, ge=0)
    """Processes that compute gradients, each on its own share of the batch; 0: the driver does it itself."""
    num_cpus_per_learner: float = Field(1.0, ge=0)
    """CPUs that Ray reserves for each."""
    num_gpus_per_learner: float = Field(0.0, ge=0)
    """GPUs of each learner, or of the driver where there is none; a fraction shares a device, 0 is the CPU."""
    num_threads: int = Field(1, ge=1)
    """Torch threads of the driver, for what it computes itself. One is faster for small networks, much so beside other work."""
    max_restarts: int = Field(10, ge=0)
    """Times that lost processes are replaced: each env runner by itself; all learners together, from the newest checkpoint."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further settings of RLlib's `AlgorithmConfig`, by the names that its methods `training`, `env_runners`, `learners` and
    `reporting` take. One that has a setting here is refused."""


class RLlibOnlineConfig(RLlibConfig):
    """What algorithms have that step environments while they learn."""

    gamma: float = Field(0.99, gt=0, le=1)
    """Discount of rewards, a step."""
    num_env_runners: int = Field(0, ge=0)
    """Processes that step environments, on any node; 0: the driver does it itself."""
    num_envs_per_env_runner: int = Field(1, ge=1)
    """Environments that each of them steps side by side, with one forward pass for all."""
    num_cpus_per_env_runner: float = Field(1.0, ge=0)
    """CPUs that Ray reserves for each."""


class RLlibPPOLearnerConfig(RLlibOnlineConfig):
    """Proximal policy optimisation by RLlib. arXiv:1707.06347."""

    algorithm: Literal["rllib_ppo"]
    """`ppo` without the prefix is the method for language models."""
    lr: LearningRate = 3e-4
    """Learning rate of Adam; or pairs of (environment step, learning rate), with straight lines between."""
    num_envs_per_env_runner: int = Field(8, ge=1)
    """Environments that each env runner steps side by side, with one forward pass for all."""
    train_batch_size_per_learner: int = Field(2048, ge=1)
    """Environment steps of one iteration, for each learner."""
    minibatch_size: int = Field(128, ge=1)
    """Environment steps of one optimizer step."""
    num_epochs: int = Field(6, ge=1)
    """Passes over each batch."""
    lambda_: float = Field(0.95, ge=0, le=1)
    """Of generalised advantage estimation. arXiv:1506.02438."""
    clip_param: float = Field(0.2, gt=0, lt=1)
    """Half-width of the trust region on the probability ratio."""
    vf_clip_param: float = Field(10_000.0, gt=0)
    """The squared error of a value is cut here, and beyond it teaches nothing. RLlib's own 10 is too small for most returns."""
    vf_loss_coeff: float = Field(0.5, ge=0)
    """Weight of the value loss."""
    entropy_coeff: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, which keeps it exploring."""
    use_kl_loss: bool = False
    """Also penalise the KL divergence to the policy that sampled, with a coefficient that seeks `kl_target`."""
    kl_coeff: float = Field(0.2, ge=0)
    """Where that coefficient begins."""
    kl_target: float = Field(0.01, gt=0)
    """Nats."""

    @model_validator(mode="after")
    def _minibatches_fit(self) -> Self:
        if self.minibatch_size > self.train_batch_size_per_learner:
            raise ValueError(
                f"minibatch_size={self.minibatch_size} is more than train_batch_size_per_learner="
                f"{self.train_batch_size_per_learner}; lower it"
            )
        return self


class RLlibAsynchronousConfig(RLlibOnlineConfig):
    """What algorithms have whose env runners never wait for the learner. No two such runs are alike, whatever the seed: what an
    env runner samples with depends on the clock."""

    num_env_runners: int = Field(2, ge=1)
    """Processes that step environments, on any node, and never wait."""
    lr: LearningRate = 5e-4
    """Learning rate of Adam; or pairs of (environment step, learning rate), with straight lines between."""
    grad_clip: float | None = Field(40.0, gt=0)
    """A longer gradient, in L2 norm over all parameters, is scaled down to it; None is never."""
    train_batch_size_per_learner: int = Field(500, ge=1)
    """Environment steps of one optimizer step, for each learner."""
    rollout_fragment_length: int = Field(50, ge=1)
    """Steps of each environment that an env runner sends at a time."""
    broadcast_interval: int = Field(1, ge=1)
    """Updates between two weights that env runners are given."""
    vf_loss_coeff: float = Field(0.5, ge=0)
    """Weight of the value loss."""
    entropy_coeff: float = Field(0.01, ge=0)
    """Weight of the policy's entropy, which keeps it exploring."""
    vtrace_clip_rho_threshold: float = Field(1.0, gt=0)
    """Most that the importance weight of a step counts in the targets of the values."""
    vtrace_clip_pg_rho_threshold: float = Field(1.0, gt=0)
    """The same in the policy gradient."""


class RLlibIMPALALearnerConfig(RLlibAsynchronousConfig):
    """Importance-weighted actors and learners by RLlib, with V-trace. arXiv:1802.01561."""

    algorithm: Literal["rllib_impala"]
    """For many env runners: each sends what it sampled under older weights, and importance weights correct for their age."""


class RLlibAPPOLearnerConfig(RLlibAsynchronousConfig):
    """The same with PPO's clipped ratio, and batches that are learned from more than once. arXiv:1912.00167."""

    algorithm: Literal["rllib_appo"]
    """Asynchronous `rllib_ppo`."""
    clip_param: float = Field(0.4, gt=0, lt=1)
    """Half-width of the trust region on the probability ratio."""
    circular_buffer_num_batches: int = Field(8, ge=1)
    """Batches that are kept, the newest."""
    circular_buffer_iterations_per_batch: int = Field(2, ge=1)
    """Updates from each of them, at most."""
    target_network_update_freq: float = Field(2.0, gt=0)
    """Updates between copies of the network that ratios are taken against, in units of both numbers above together."""
    tau: float = Field(1.0, gt=0, le=1)
    """By how much it then moves towards the network; 1 is a copy."""


class ReplayBufferConfig(StrictConfig):
    """Steps that were taken and are learned from again and again."""

    prioritized: bool = True
    """Draw those more often that surprised. arXiv:1511.05952. false: all alike."""
    capacity: int = Field(50_000, ge=1)
    """Environment steps; the oldest episodes make room."""
    alpha: float = Field(0.6, ge=0, le=1)
    """How much surprise counts: 0 is not at all."""
    beta: float = Field(0.4, ge=0, le=1)
    """How much the bias of that is corrected: 1 is wholly."""


class RLlibReplayConfig(RLlibOnlineConfig):
    """What algorithms have that learn action values from a replay buffer."""

    n_step: int = Field(1, ge=1)
    """Rewards that are summed before the target network's value. A prioritized buffer never draws the last n_step - 1 steps of an
    episode, so above 1 nothing teaches their values: they can diverge, and take all others along."""
    num_steps_sampled_before_learning_starts: int = Field(1000, ge=0)
    """Until then steps are only taken."""
    training_intensity: float | None = Field(None, gt=0)
    """Steps learned from for each step taken. None: one batch each time that every environment has stepped."""
    target_network_update_freq: int = Field(500, ge=1)
    """Environment steps between updates of the target network."""
    tau: float = Field(1.0, gt=0, le=1)
    """By how much it then moves towards the network; 1 is a copy."""
    replay_buffer: ReplayBufferConfig = ReplayBufferConfig()


class RLlibDQNLearnerConfig(RLlibReplayConfig):
    """Deep Q-learning by RLlib, with the parts of Rainbow. arXiv:1312.5602, arXiv:1710.02298."""

    algorithm: Literal["rllib_dqn"]
    """`q_learning` keeps a table in the place of the network."""
    lr: LearningRate = 1e-3
    """Learning rate of Adam; or pairs of (environment step, learning rate), with straight lines between."""
    grad_clip: float | None = Field(10.0, gt=0)
    """A longer gradient, in L2 norm over all parameters, is scaled down to it; None is never."""
    train_batch_size_per_learner: int = Field(32, ge=1)
    """Steps that one optimizer step draws from the replay buffer, for each learner."""
    double_q: bool = True
    """The network chooses the next action, the target network values it. arXiv:1509.06461."""
    dueling: bool = True
    """A head for the state's value and one for what each action adds. arXiv:1511.06581."""
    num_atoms: int = Field(1, ge=1)
    """Above 1: learn the distribution of returns over so many values. arXiv:1707.06887."""
    v_min: float = -10.0
    """The lowest of them."""
    v_max: float = 10.0
    """The highest."""
    epsilon: Annotated[Schedule, AfterValidator(_checked_schedule)] = ((0, 1.0), (10_000, 0.05))
    """Share of random actions: pairs of (environment step, share), with straight lines between. The first is of step 0."""

    @model_validator(mode="after")
    def _the_range_has_an_order(self) -> Self:
        if self.v_min >= self.v_max:
            raise ValueError(f"v_min={self.v_min:g} must be below v_max={self.v_max:g}")
        return self


class RLlibSACLearnerConfig(RLlibReplayConfig):
    """Soft actor-critic by RLlib, for actions that are vectors of numbers, or choices. arXiv:1812.05905."""

    algorithm: Literal["rllib_sac"]
    """Learns a policy and action values, and pays the policy for its entropy."""
    network: NetworkConfig = NetworkConfig(fcnet_hiddens=(256, 256), fcnet_activation="relu")
    """Of the policy, and once more of each action-value function."""
    grad_clip: float | None = Field(None, gt=0)
    """A longer gradient, in L2 norm over all parameters, is scaled down to it; None is never."""
    actor_lr: LearningRate = 3e-4
    """Learning rate of the policy's Adam."""
    critic_lr: LearningRate = 1e-3
    """Of the action values'."""
    alpha_lr: LearningRate = 1e-3
    """Of the entropy coefficient's."""
    train_batch_size_per_learner: int = Field(256, ge=1)
    """Steps that one optimizer step draws from the replay buffer, for each learner."""
    twin_q: bool = True
    """Learn two action-value functions and believe the lower one. arXiv:1802.09477."""
    initial_alpha: float = Field(1.0, gt=0)
    """Where the entropy coefficient begins."""
    target_entropy: float | Literal["auto"] = "auto"
    """Nats that the entropy coefficient seeks. auto: minus the number of dimensions of an action, for vectors."""
    target_network_update_freq: int = Field(1, ge=1)
    """Environment steps between updates of the target network."""
    tau: float = Field(5e-3, gt=0, le=1)
    """By how much it then moves towards the network; 1 is a copy."""
    replay_buffer: ReplayBufferConfig = ReplayBufferConfig(prioritized=False, capacity=100_000)


class RLlibRecordedConfig(RLlibConfig):
    """What algorithms have that learn from recorded episodes and step no environment."""

    input_: tuple[str, ...] = Field(min_length=1)
    """Run directories of the same environment that had evaluation.record_episodes=true; or single files of them, which are
    `evaluation/environment/before_episodes.safetensors` and `after_episodes.safetensors`. A directory is its `after`."""
    lr: LearningRate = 1e-3
    """Learning rate of Adam; or pairs of (environment step, learning rate), with straight lines between."""
    train_batch_size_per_learner: int = Field(2000, ge=1)
    """Recorded steps of one optimizer step, for each learner. Whole episodes are drawn until there are so many."""


class RLlibBCLearnerConfig(RLlibRecordedConfig):
    """Behaviour cloning by RLlib: the likelihood of recorded actions."""

    algorithm: Literal["rllib_bc"]
    """Rewards play no part."""


class RLlibMARWILLearnerConfig(RLlibRecordedConfig):
    """Monotonic advantage re-weighted imitation learning by RLlib: behaviour cloning that prefers what went well."""

    algorithm: Literal["rllib_marwil"]
    """Wang et al. 2018, "Exponentially weighted imitation learning for batched historical data"."""
    gamma: float = Field(0.99, gt=0, le=1)
    """Discount of rewards, a step."""
    lambda_: float = Field(1.0, ge=0, le=1)
    """Of generalised advantage estimation; 1 is the return that was recorded. arXiv:1506.02438."""
    beta: float = Field(1.0, gt=0, le=1)
    """How much advantages count: a recorded action weighs exp(beta x advantage, in units of its root mean square)."""
    vf_coeff: float = Field(1.0, ge=0)
    """Weight of the value loss."""
    moving_average_sqd_adv_norm_start: float = Field(100.0, gt=0)
    """Where the mean square of advantages begins, which they are divided by the root of."""
    moving_average_sqd_adv_norm_update_rate: float = Field(1e-2, gt=0, le=1)
    """By how much it moves towards that of a batch. RLlib's own 1e-8 never leaves the start."""


RLlibLearnerConfig = (
    RLlibPPOLearnerConfig
    | RLlibIMPALALearnerConfig
    | RLlibAPPOLearnerConfig
    | RLlibDQNLearnerConfig
    | RLlibSACLearnerConfig
    | RLlibBCLearnerConfig
    | RLlibMARWILLearnerConfig
)


class EnvStepCheckpointConfig(StrictConfig):
    """Checkpoints of network, optimizer and replay buffer; the last iteration is always kept."""

    every_num_env_steps: int = Field(50_000, ge=1)
    """After the iteration in which so many more are reached. A killed run or a lost learner costs so many at most. Episodes in
    progress are dropped then, so that a resumed run is the same as one that was not interrupted."""
    keep: int = Field(2, ge=1)
    """Older ones are removed."""
