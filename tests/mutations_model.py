"""Mistakes in the networks, the recurrent core, the heads and their distributions."""

from mutations import Mutation

KERNELS = "kernels/fastdreamer_kernels/"
FUNCTIONAL, CORE, POLICY = f"{KERNELS}functional.py", f"{KERNELS}rssm_core.py", f"{KERNELS}policy.py"
GRU, KL, SAMPLE, BINS = (f"{KERNELS}{op}/reference.py" for op in ("block_gru", "unimix_kl", "unimix_sample", "twohot"))
OBSERVE, IMAGINE = (f"{KERNELS}{op}_sequence/reference.py" for op in ("observe", "imagine"))
NETS, DISTS, HEADS, RSSM = (f"fastdreamer/{name}.py" for name in ("nets", "dists", "heads", "rssm"))

NORM = "test_golden_layers.py::test_rms_norm_of_vectors_and_images"
LAYER = "test_golden_layers.py::test_layer"
STEP = "test_golden_rssm.py::test_core"
OBSERVED = "test_golden_rssm.py::test_observe_likeliest_latents_and_gradients_through_time"
CODED = "test_golden_encdec.py::test_tokens_predictions_and_losses"
ACTOR = "test_golden_heads.py::test_log_prob_and_entropy_of_the_actor"
BOUNDED = "test_golden_heads.py::test_mean_and_std_of_the_continuous_actor"
ZERO = "test_golden_heads.py::test_reward_and_value_start_at_zero"
WIDE = "test_golden_heads.py::test_fresh_actor_is_wide_and_fresh_continue_is_undecided"
CLASSES = "test_golden_heads.py::test_logits_of_discrete_actors"
INITIAL = "test_golden_parameters.py::test_initial_values"
TWOHOT = "test_golden_dists.py::test_twohot_bins_mean_and_loss"
MIXED = "test_golden_dists.py::test_mixed_distributions"
FREE_NATS = "test_golden_dists.py::test_kl_losses_with_free_nats"
STRAIGHT = "test_golden_dists.py::test_straight_through_sample"
DREAM = "test_golden_agent.py::test_dream"
DREAMED = "test_agent.py::test_a_dream_is_policy_core_prior_and_sample_in_turn"

LAYERS = {
    "norm eps 1e-5": Mutation(FUNCTIONAL, "NORM_EPS = 1e-4", "NORM_EPS = 1e-5", NORM),
    "norm eps 1e-3": Mutation(FUNCTIONAL, "NORM_EPS = 1e-4", "NORM_EPS = 1e-3", NORM),
    "norm subtracts the mean": Mutation(
        FUNCTIONAL,
        "F.rms_norm(widen(x), scale.shape, scale,",
        "F.layer_norm(widen(x), scale.shape, scale, None,",
        NORM,
    ),
    "act before norm": Mutation(FUNCTIONAL, "F.silu(rms_norm(x, scale))", "rms_norm(F.silu(x), scale)", LAYER),
    "relu": Mutation(FUNCTIONAL, "F.silu(", "F.relu(", LAYER),
    "interleaved blocks": Mutation(
        FUNCTIONAL,
        "x.reshape(-1, blocks, width).transpose(0, 1)",
        "x.reshape(-1, width, blocks).permute(2, 0, 1)",
        LAYER,
    ),
    "fan-in of one block": Mutation(
        NETS, "units // blocks), units, inputs)", "units // blocks), units, inputs // blocks)", INITIAL
    ),
    "fan-in of one pixel": Mutation(NETS, "units, 25 * inputs)", "units, inputs)", INITIAL),
    "truncation not made up for": Mutation(NETS, "TRUNCATION = 1.1368", "TRUNCATION = 1.0", INITIAL),
    "cut at three": Mutation(NETS, "math.erf(-2 / math.sqrt(2))", "math.erf(-3 / math.sqrt(2))", INITIAL),
    "absent value is a class": Mutation(
        NETS,
        "(index.unsqueeze(-1) == torch.arange(classes, device=index.device))",
        "(index.clamp(min=0).unsqueeze(-1) == torch.arange(classes, device=index.device))",
        "test_nets.py::test_absent_values_are_zeros",
    ),
    "absent value is infinite": Mutation(
        NETS, "torch.where(torch.isneginf(value), 0.0, value)", "value", "test_nets.py::test_absent_values_are_zeros"
    ),
    "keys as they come": Mutation(
        NETS,
        "for key in sorted(spaces):",
        "for key in spaces:",
        "test_nets.py::test_keys_are_joined_in_alphabetical_order",
    ),
    "encoder without symlog": Mutation(NETS, "self.vectors, 2, squish=True)", "self.vectors, 2, squish=False)", CODED),
    "pixels from 0 to 1": Mutation(NETS, "/ 255 - 0.5", "/ 255", CODED),
    "mean pooling": Mutation(NETS, "F.max_pool2d(", "F.avg_pool2d(", CODED),
    "norm before pooling": Mutation(
        NETS,
        """                x = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
                x = norm_act(x, norm_scale(self, f"cnn{i}norm"))
""",
        """                x = norm_act(x, norm_scale(self, f"cnn{i}norm"))
                x = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
""",
        CODED,
    ),
    "token order": Mutation(NETS, "return torch.cat(tokens, -1)", "return torch.cat(tokens[::-1], -1)", CODED),
    "decoder reads deter first": Mutation(
        NETS, "torch.cat([stoch, deter], -1)", "torch.cat([deter, stoch], -1)", CODED
    ),
    "channels of a block spread": Mutation(
        NETS, "x.permute(0, 2, 3, 1, 4).flatten(3)", "x.permute(0, 2, 3, 4, 1).flatten(3)", CODED
    ),
    "image before its sigmoid": Mutation(NETS, "torch.sigmoid(self.imgout(x))", "self.imgout(x)", CODED),
    "upsampled taps shifted": Mutation(
        NETS, "((1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 1.0,", "((1.0, 1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0,", CODED
    ),
    "phases in columns first": Mutation(NETS, "->opqiab", "->oqpiab", CODED),
}

RECURRENT = {
    "gate order": Mutation(GRU, "reset, cand, update = gates", "cand, reset, update = gates", STEP),
    "gates across blocks": Mutation(
        GRU, "gates.unflatten(1, (blocks, 3, -1)).unbind(2)", "gates.unflatten(1, (3, blocks, -1)).unbind(1)", STEP
    ),
    "update bias dropped": Mutation(GRU, "torch.sigmoid(update - 1)", "torch.sigmoid(update)", STEP),
    "update bias +1": Mutation(GRU, "torch.sigmoid(update - 1)", "torch.sigmoid(update + 1)", STEP),
    "reset outside tanh": Mutation(
        GRU, "torch.tanh(torch.sigmoid(reset) * cand)", "torch.sigmoid(reset) * torch.tanh(cand)", STEP
    ),
    "update keeps the old": Mutation(
        GRU, "update * cand + (1 - update) * old", "update * old + (1 - update) * cand", STEP
    ),
    "large actions pass": Mutation(CORE, "action / action.detach().abs().clamp(min=1)", "action", STEP),
    "large actions clipped": Mutation(CORE, "action / action.detach().abs().clamp(min=1)", "action.clamp(-1, 1)", STEP),
    "embedding order": Mutation(
        CORE,
        "[layer(deter, core.deter), layer(stoch, core.stoch), action]",
        "[layer(stoch, core.stoch), layer(deter, core.deter), action]",
        STEP,
    ),
    "action kept at is_first": Mutation(
        OBSERVE, "embed_action(action * keep, core.action)", "embed_action(action, core.action)", OBSERVED
    ),
    "deter kept at is_first": Mutation(OBSERVE, "deter * keep[:, t], ", "deter, ", OBSERVED),
    "stoch kept at is_first": Mutation(OBSERVE, "onehot * keep[:, t, :, None]", "onehot", OBSERVED),
    "start state ignored": Mutation(
        OBSERVE, "    steps = []", "    steps, deter = [], torch.zeros_like(deter)", OBSERVED
    ),
    "time cut out of the gradient": Mutation(
        OBSERVE, "own, shared, deter, onehot.flatten(1)", "own, shared, deter.detach(), onehot.flatten(1)", OBSERVED
    ),
    "posterior without the mix": Mutation(OBSERVE, "uniform[:, t], unimix)", "uniform[:, t], 0.0)", OBSERVED),
    "prior without the mix": Mutation(IMAGINE, "uniform[:, h], unimix)", "uniform[:, h], 0.0)", DREAMED),
    "policy sees the start": Mutation(
        IMAGINE, "torch.cat([deter, onehot], -1)", "torch.cat([states[0][0], onehot], -1)", DREAM
    ),
    "policy sees stoch first": Mutation(
        IMAGINE, "torch.cat([deter, onehot], -1)", "torch.cat([onehot, deter], -1)", DREAM
    ),
    "policy acts a step late": Mutation(
        IMAGINE, "actions[-1].to(deter.dtype)", "actions[max(h - 1, 0)].to(deter.dtype)", DREAM
    ),
    "one noise for all actions": Mutation(IMAGINE, "action_noise[:, h]", "action_noise[:, 0]", DREAMED),
    "dream a step short": Mutation(IMAGINE, "uniform.shape[1]", "uniform.shape[1] - 1", DREAM, raises=True),
    "dream reads stoch first": Mutation(
        f"{KERNELS}mlp/reference.py",
        "torch.cat([x, F.one_hot(stoch.long(), classes).flatten(-2).to(x.dtype)], -1)",
        "torch.cat([F.one_hot(stoch.long(), classes).flatten(-2).to(x.dtype), x], -1)",
        DREAM,
    ),
    "imagination without the mix": Mutation(RSSM, "self.unimix, actor_unimix,", "0.0, actor_unimix,", DREAMED),
}

DISTRIBUTIONS = {
    "mix not shared out": Mutation(SAMPLE, "unimix / logits.shape[-1]", "unimix", MIXED),
    "mix added on top": Mutation(SAMPLE, "(1 - unimix) * probs + unimix", "probs + unimix", MIXED),
    "sample one class late": Mutation(
        SAMPLE,
        "(uniform.unsqueeze(-1) >= cdf)",
        "(uniform.unsqueeze(-1) > cdf)",
        "test_kernels_reference.py::test_sample_on_an_edge_of_the_cdf_belongs_to_the_next_class",
    ),
    "sample without gradient": Mutation(SAMPLE, "(probs - probs.detach())", "(probs - probs)", STRAIGHT),
    "posterior of the KL without the mix": Mutation(
        KL, "post, prior = mixed_log_probs(post, unimix)", "post, prior = mixed_log_probs(post, 0)", FREE_NATS
    ),
    "prior of the KL without the mix": Mutation(
        KL, "mixed_log_probs(prior, unimix)\n", "mixed_log_probs(prior, 0)\n", FREE_NATS
    ),
    "KL direction": Mutation(KL, "(p.exp() * (p - q))", "(q.exp() * (q - p))", FREE_NATS),
    "dyn trains the posterior": Mutation(
        KL, "dyn = _kl(post.detach(), prior)", "dyn = _kl(post, prior.detach())", FREE_NATS
    ),
    "rep trains the prior": Mutation(
        KL, "rep = _kl(post, prior.detach())", "rep = _kl(post.detach(), prior)", FREE_NATS
    ),
    "free nats per group": Mutation(
        KL, "(p.exp() * (p - q)).sum((-2, -1))", "(p.exp() * (p - q)).sum(-1).clamp(min=1.0).sum(-1)", FREE_NATS
    ),
    "no free nats for rep": Mutation(KL, "rep.clamp(min=free_nats)", "rep", FREE_NATS),
    "bins up to 10": Mutation(DISTS, "torch.linspace(-20, 0,", "torch.linspace(-10, 0,", TWOHOT),
    "uniform logits are not 0": Mutation(
        BINS,
        "return (pairs * bins[middle + 1 :]).sum(-1)",
        "return (probs * bins).sum(-1)",
        ZERO,
    ),
    "two-hot between symlog bins": Mutation(
        BINS,
        "low, high = bins[below], bins[below + 1]",
        "low, high, target = (x.sign() * x.abs().log1p() for x in (bins[below], bins[below + 1], target))",
        TWOHOT,
    ),
    "two-hot beyond the end": Mutation(BINS, "(high - low)).clamp(0, 1)", "(high - low))", TWOHOT),
    "two-hot weights swapped": Mutation(
        BINS, "torch.stack([below, below + 1], -1)", "torch.stack([below + 1, below], -1)", TWOHOT
    ),
    "std without its shift": Mutation(POLICY, "torch.sigmoid(stddev + 2)", "torch.sigmoid(stddev)", BOUNDED),
    "std down to 0": Mutation(POLICY, "MIN_STD, MAX_STD = 0.1, 1.0", "MIN_STD, MAX_STD = 0.0, 1.0", BOUNDED),
    "mean without tanh": Mutation(POLICY, "torch.tanh(mean).float()", "mean.float()", BOUNDED),
    "sample squashed": Mutation(
        POLICY, "parts.append(mean + std * part)", "parts.append(torch.tanh(mean + std * part))", DREAM
    ),
    "sample is the mean": Mutation(POLICY, "parts.append(mean + std * part)", "parts.append(mean)", DREAM),
    "log-prob is a mean": Mutation(DISTS, "log_prob + density.sum(-1)", "log_prob + density.mean(-1)", ACTOR),
    "log-prob without the scale": Mutation(DISTS, "LOG_TWO_PI) - std.log()", "LOG_TWO_PI)", ACTOR),
    "log-prob of one element": Mutation(
        DISTS,
        "(log_probs * value.unflatten(-1, shape)).sum((-2, -1))",
        "(log_probs * value.unflatten(-1, shape)).sum(-1)[..., 0]",
        ACTOR,
    ),
    "entropy of one element": Mutation(
        DISTS,
        "entropies.append(-(log_probs.exp() * log_probs).sum((-2, -1)))",
        "entropies.append(-(log_probs.exp() * log_probs).sum(-1)[..., 0])",
        ACTOR,
    ),
    "entropy without 1/2": Mutation(
        DISTS, "(0.5 * (1 + LOG_TWO_PI) + std.log())", "(0.5 * LOG_TWO_PI + std.log())", ACTOR
    ),
    "policy starts narrow": Mutation(HEADS, "outscale=0.01", "outscale=1.0", INITIAL),
    "heads start random": Mutation(HEADS, "width, outscale=0.0)", "width, outscale=1.0)", ZERO),
    "one layer for the policy": Mutation(HEADS, "MLP(inputs, units, 3)", "MLP(inputs, units, 1)", CLASSES),
}
