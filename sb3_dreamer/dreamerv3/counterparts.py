"""Arguments and policies of other algorithms in SB3, and settings of other implementations, with their counterparts here."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

NO_NOISE = "none, the actor is stochastic and `ent_coef` sets how much"
ONE_CRITIC = "none, there is one critic and its slow copy"
LATENT = "`deter` in `policy_kwargs`, or `model_size`: the recurrent state is the world model's"


def by_name(*groups: tuple[str, str]) -> dict[str, str]:
    """:return: the counterpart of each name, from pairs of space-separated names and their common counterpart"""
    return {name: counterpart for names, counterpart in groups for name in names.split()}


# Arguments of constructors.
ARGUMENTS = by_name(
    ("gradient_steps n_epochs n_critic_updates", "`training_ratio`, the replayed time steps per environment step"),
    ("n_steps", "`return_lambda` for the returns, `batch_length` for the windows, `train_freq` for the rollouts"),
    ("action_noise use_sde sde_sample_freq use_sde_at_warmup", NO_NOISE),
    ("exploration_fraction exploration_initial_eps exploration_final_eps", NO_NOISE),
    ("target_entropy", "`ent_coef`, a weight of the entropy, or 'auto': the weight falls over the run"),
    ("target_policy_noise target_noise_clip", "none, the critic learns from imagined actions"),
    ("optimize_memory_usage", "none, every observation is stored only once anyway"),
    ("net_arch", "`model_size`, or single dimensions in `policy_kwargs`"),
    ("target_update_interval", "`tau`, the slow critic moves at each update"),
    ("policy_delay", "none, actor and critic learn at each update"),
    ("gae_lambda", "`return_lambda`"),
    ("max_grad_norm", "`agc_clip`"),
    ("vf_coef", "`loss_scales`, its keys `critic` and `replay_critic`"),
    ("use_rms_prop rms_prop_eps", "`optimizer_class` and `optimizer_kwargs` in `policy_kwargs`"),
    ("rollout_buffer_class", "`replay_buffer_class`"),
    ("rollout_buffer_kwargs", "`replay_buffer_kwargs`"),
    ("normalize_advantage", "none, advantages are divided by the range of the returns"),
    (
        "clip_range clip_range_vf target_kl sub_sampling_factor",
        "none, trajectories are imagined by the newest policy and used once",
    ),
    ("cg_max_steps cg_damping line_search_shrinking_factor line_search_max_iter", "none, each update is one optimizer step"),
    ("top_quantiles_to_drop_per_net", ONE_CRITIC),
    (
        "n_delta n_top delta_std zero_policy alive_bonus_offset n_eval_episodes",
        "none, policies are trained by gradients, not by random search",
    ),
)
# Settings of RLlib, sheeprl and the official code that have another name here.
OTHER_IMPLEMENTATIONS = by_name(
    ("train_ratio", "`training_ratio`, the replayed time steps per environment step"),
    ("replay_ratio", "`training_ratio` = replay_ratio * batch_size * batch_length"),
    ("batch_size_B per_rank_batch_size", "`batch_size`"),
    ("batch_length_T per_rank_sequence_length", "`batch_length`"),
    ("horizon_H imag_length", "`imagination_horizon`"),
    ("horizon", "`imagination_horizon` for imagined trajectories, `gamma` = 1 - 1 / horizon for the discount"),
    ("lam", "`return_lambda`"),
    ("entropy_scale actent", "`ent_coef`"),
    ("imag_last", "`imagine_last`"),
    ("world_model_lr actor_lr critic_lr", "`learning_rate`, and `lr_scale` in `optimizer_kwargs` in `policy_kwargs`"),
    ("use_float16", "`precision`"),
)
# Keys of `policy_kwargs`.
POLICY_KWARGS = by_name(
    ("net_arch", "`units`, `hidden` and the numbers of layers, such as `actor_layers`"),
    ("features_extractor_class features_extractor", "`encoder_class`"),
    ("features_extractor_kwargs", "`encoder_kwargs`"),
    ("share_features_extractor", "none, actor and critic read the features of the world model"),
    ("activation_fn", "`encoder_class` and `decoder_class` for custom networks"),
    ("ortho_init with_bias", "none, layers are those of the paper"),
    ("n_critics", ONE_CRITIC),
    ("n_quantiles", "`bins` of the two-hot distributions"),
    ("use_sde log_std_init full_std use_expln", NO_NOISE),
    ("squash_output clip_mean", "none, actions of a Box always lie within its bounds"),
    ("batch_norm batch_norm_momentum batch_norm_eps renorm_warmup_steps", "none, layers are normalised by RMSNorm"),
    ("lstm_hidden_size", LATENT),
    ("n_lstm_layers", "`dynamics_layers`"),
    ("shared_lstm enable_critic_lstm", "none, actor and critic read the state of the world model"),
    ("lstm_kwargs", LATENT),
)
# An argument that is also a key of `policy_kwargs`, such as `net_arch`, is looked up as an argument.
COUNTERPARTS = POLICY_KWARGS | OTHER_IMPLEMENTATIONS | ARGUMENTS
RECURRENT = "every policy here is recurrent"
POLICIES = {
    "MlpLstmPolicy": f"`MlpPolicy`, {RECURRENT}",
    "CnnLstmPolicy": f"`CnnPolicy`, {RECURRENT}",
    "MultiInputLstmPolicy": f"`MultiInputPolicy`, {RECURRENT}",
    "LinearPolicy": '`MlpPolicy` with a small `model_size`, such as "debug"',
}


def refuse_arguments(arguments: dict[str, Any]) -> None:
    """
    :param arguments: arguments by name
    :raises TypeError: if one belongs to another algorithm of SB3, or to another implementation, as an argument or a key of
        ``policy_kwargs``. The message names its counterpart.
    """
    for name, value in arguments.items():
        counterpart = COUNTERPARTS.get(name)
        if counterpart:
            raise TypeError(f"`{name}` is no argument of DreamerV3, got {name}={value!r}; its counterpart: {counterpart}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """:return: a question that names the most similar of the known names, empty if none is similar"""
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean `{similar[0]}`? " if similar else ""


def refuse_unknown(arguments: Iterable[str], known: list[str]) -> None:
    """
    :param arguments: names of arguments
    :param known: names that are allowed
    :raises TypeError: if one is not allowed. The message names a similar one.
    """
    for name in arguments:
        if name not in known:
            public = [one for one in known if not one.startswith("_")]
            hint = did_you_mean(name, public) or f"The arguments are {', '.join(public)}"
            raise TypeError(f"`{name}` is no argument of DreamerV3. {hint.rstrip()}")


def refuse_unknown_keys(given: Iterable[str], dimensions: Iterable[str], constructor: Callable[..., None]) -> None:
    """
    :param given: keys of ``policy_kwargs`` that are no arguments of the policy
    :param dimensions: names of the dimensions of a model, which are allowed
    :param constructor: of the policy
    :raises TypeError: if a key is no dimension. The message names its counterpart, or a similar key.
    """
    unknown = sorted(set(given) - set(dimensions))
    if not unknown:
        return
    own = inspect.signature(constructor).parameters
    known = [name for name in own if name not in ("self", "observation_space", "action_space", "lr_schedule", "dimensions")]
    hints = ""
    for name in unknown:
        theirs = POLICY_KWARGS.get(name)
        hints += f"The counterpart of `{name}`: {theirs}. " if theirs else did_you_mean(name, [*known, *dimensions])
    raise TypeError(
        f"`policy_kwargs` has no {', '.join(unknown)}. {hints}It has {', '.join(known)}. Dimensions are "
        f"{', '.join(sorted(dimensions))}"
    )


def name_counterparts(constructor: Callable[..., None]) -> Callable[..., None]:
    """
    Decorate a constructor, so that arguments and policies of other algorithms raise an error that names their counterpart, and
    unknown arguments one that names similar ones.

    :param constructor: an ``__init__`` whose first argument is the policy
    :return: the decorated constructor, with the same signature
    """

    known = list(inspect.signature(constructor).parameters)[1:]

    @functools.wraps(constructor)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        policy = args[0] if args else kwargs.get("policy")
        if isinstance(policy, str) and policy in POLICIES:
            raise ValueError(f"`{policy}` is no policy of DreamerV3, its counterpart: {POLICIES[policy]}")
        refuse_arguments(kwargs)
        refuse_unknown(kwargs, known)
        constructor(self, *args, **kwargs)

    return checked
