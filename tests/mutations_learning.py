"""Mistakes in the losses, the returns, the optimizer and the order of one update."""

from mutations import Mutation

RETURN, LAPROP = (f"kernels/fastdreamer_kernels/{op}/reference.py" for op in ("lambda_return", "laprop_agc"))
TWOHOT = "kernels/fastdreamer_kernels/twohot/__init__.py"
CONFIG, WORLD, BEHAVIOR, AGENT, OPTIM = (
    f"fastdreamer/{name}.py" for name in ("config", "world_model", "behavior", "agent", "optim")
)

CODED = "test_golden_encdec.py::test_tokens_predictions_and_losses"
RETURNS = "test_golden_returns.py::test_lambda_returns"
NORMALIZER = "test_golden_returns.py::test_return_normalizer"
SLOW = "test_golden_returns.py::test_slow_critic"
IMAGINED = "test_golden_actor_critic.py::test_losses_of_imagined_steps"
REPLAYED = "test_golden_actor_critic.py::test_value_loss_of_replayed_steps"
TERMS = "test_golden_agent.py::test_loss_terms_and_what_each_of_them_reaches"
TOTAL = "test_golden_agent.py::test_total_loss_and_all_gradients"
DREAM = "test_golden_agent.py::test_dream"
UPDATE = "test_golden_optimizer.py::test_every_update"
CLIPPED = "test_golden_optimizer.py::test_clipped_gradients"
WARMUP = "test_golden_optimizer.py::test_learning_rate_warms_up_from_zero"
ACTED = "test_agent.py::test_acting_step_by_step_is_observing_the_sequence"
AFTER = "test_steps.py::test_the_slow_critic_follows_the_critic_of_this_update"

WORLD_MODEL = {
    "no mix in the world model": Mutation(CONFIG, "unimix: float = 0.01", "unimix: float = 0.0", TERMS),
    "mix in the actor": Mutation(CONFIG, "actor_unimix: float = 0.0", "actor_unimix: float = 0.01", TERMS),
    "features with stoch first": Mutation(
        WORLD, "feat = torch.cat([deter, latent], -1)", "feat = torch.cat([latent, deter], -1)", TERMS
    ),
    "decoder sees no gradient": Mutation(WORLD, "self.dec(deter, latent)", "self.dec(deter.detach(), latent)", TERMS),
    "prior of another step": Mutation(WORLD, "self.dyn.prior(deter)", "self.dyn.prior(deter.roll(1, 1))", TERMS),
    "continue target 1": Mutation(
        WORLD,
        "(~batch.is_terminal).float() * (1 - 1 / self.config.discount_horizon)",
        "(~batch.is_terminal).float()",
        TERMS,
    ),
    "continue ends at is_last": Mutation(WORLD, "(~batch.is_terminal).float()", "(~batch.is_last).float()", TERMS),
    "decoder target without symlog": Mutation(
        WORLD, "symlog(torch.where(present, target, 0.0))", "torch.where(present, target, 0.0)", CODED
    ),
    "half the squared error": Mutation(WORLD, "(error.square() * present)", "(0.5 * error.square() * present)", CODED),
    "mean over pixels": Mutation(WORLD, "255).square().flatten(2).sum(-1)", "255).square().flatten(2).mean(-1)", CODED),
    "decoder target shifted": Mutation(
        WORLD, "(prediction - target.float() / 255)", "(prediction - target.float() / 255 + 0.5)", CODED
    ),
}

ACTOR_CRITIC = {
    "reward of the same step": Mutation(RETURN, "one_step[:, t] + ", "one_step[:, t - 1] + ", RETURNS),
    "bootstrap without continue": Mutation(
        RETURN, "reward + cont * (1 - lam) * value", "reward + (1 - lam) * value", RETURNS
    ),
    "lambda twice": Mutation(RETURN, "reward + cont * (1 - lam) * value", "reward + cont * lam * value", RETURNS),
    "zero after the end": Mutation(RETURN, "ret = value[:, -1]", "ret = torch.zeros_like(value[:, -1])", RETURNS),
    "discount twice": Mutation(
        BEHAVIOR,
        "lambda_return(dream.reward, dream.cont, value",
        "lambda_return(dream.reward, dream.cont * (1 - 1 / self.config.discount_horizon), value",
        IMAGINED,
    ),
    "slow critic bootstraps": Mutation(
        BEHAVIOR,
        "lambda_return(dream.reward, dream.cont, value",
        "lambda_return(dream.reward, dream.cont, slow",
        IMAGINED,
    ),
    "lambda 0.99": Mutation(BEHAVIOR, "LAMBDA = 0.95", "LAMBDA = 0.99", IMAGINED),
    "root weighs 1": Mutation(
        BEHAVIOR, "torch.cumprod(dream.cont, 1)", "torch.cumprod(dream.cont, 1) / dream.cont[:, :1]", IMAGINED
    ),
    "advantage not scaled": Mutation(
        BEHAVIOR, "(returns - value[:, :-1]) / scale", "(returns - value[:, :-1])", IMAGINED
    ),
    "advantage minus offset": Mutation(
        BEHAVIOR, "(returns - value[:, :-1]) / scale", "(returns - offset - value[:, :-1]) / scale", IMAGINED
    ),
    "advantage with gradient": Mutation(
        TWOHOT, "reference.twohot_mean(logits.detach(), bins)", "reference.twohot_mean(logits, bins)", IMAGINED
    ),
    "entropy scale 3e-3": Mutation(BEHAVIOR, "ENTROPY_SCALE = 3e-4", "ENTROPY_SCALE = 3e-3", IMAGINED),
    "entropy punished": Mutation(BEHAVIOR, "+ ENTROPY_SCALE * sum(", "- ENTROPY_SCALE * sum(", IMAGINED),
    "one key of several has entropy": Mutation(
        BEHAVIOR,
        "sum(entropies[1:], entropies[0])",
        "entropies[0]",
        "test_behavior.py::test_the_entropies_of_all_keys_count",
    ),
    "policy loss without weights": Mutation(
        BEHAVIOR, '"policy": -weight[:, :-1] * objective', '"policy": -objective', IMAGINED
    ),
    "no slow target": Mutation(
        BEHAVIOR,
        "weight[:, :-1] * self._value_loss(logits, returns, slow)",
        "weight[:, :-1] * self.val.loss(logits[:, :-1], returns)",
        IMAGINED,
    ),
    "no slow target in replay": Mutation(
        BEHAVIOR,
        "alive[:, :-1] * self._value_loss(logits, returns, slow)",
        "alive[:, :-1] * self.val.loss(logits[:, :-1], returns)",
        REPLAYED,
    ),
    "slow critic moves by 0.98": Mutation(LAPROP, "1e-3, 0.02", "1e-3, 0.98", AFTER),
    "critic follows the slow one": Mutation(
        LAPROP,
        "(slow, [thetas[i] for i in slow_index], SLOW_RATE)",
        "([thetas[i] for i in slow_index], slow, SLOW_RATE)",
        SLOW,
    ),
    "scale is the upper percentile": Mutation(BEHAVIOR, "(self.hi - self.lo).clamp(", "self.hi.clamp(", NORMALIZER),
    "scale without a floor": Mutation(
        BEHAVIOR, " = 0.01, (0.05, 0.95), 1.0", " = 0.01, (0.05, 0.95), 1e-8", NORMALIZER
    ),
    "percentiles 10 and 90": Mutation(BEHAVIOR, "(0.05, 0.95)", "(0.1, 0.9)", NORMALIZER),
    "percentiles 0 and 100": Mutation(BEHAVIOR, "(0.05, 0.95)", "(0.0, 1.0)", NORMALIZER),
    "statistics move by 0.1": Mutation(BEHAVIOR, " = 0.01, (0", " = 0.1, (0", NORMALIZER),
    "scale of the update before": Mutation(
        BEHAVIOR,
        "        self.retnorm.update(returns)\n        offset, scale = self.retnorm.stats()\n",
        "        offset, scale = self.retnorm.stats()\n        self.retnorm.update(returns)\n",
        IMAGINED,
    ),
    "replayed value without gradient": Mutation(
        BEHAVIOR,
        "self.val(feat), slow, batch",
        "self.val(feat.detach()), slow, batch",
        TERMS,
    ),
    "replayed lambda across episodes": Mutation(
        BEHAVIOR, "LAMBDA * alive)", "LAMBDA * torch.ones_like(alive))", REPLAYED
    ),
    "replayed last step weighs": Mutation(
        BEHAVIOR, "return alive[:, :-1] * self._value_loss", "return self._value_loss", REPLAYED
    ),
    "replayed return undiscounted": Mutation(
        BEHAVIOR,
        "(~batch.is_terminal).float() * (1 - 1 / self.config.discount_horizon)",
        "(~batch.is_terminal).float()",
        REPLAYED,
    ),
    "replayed return ends at is_last": Mutation(
        BEHAVIOR, "(~batch.is_terminal).float()", "(~batch.is_last).float()", REPLAYED
    ),
    "slow critic is trained": Mutation(
        BEHAVIOR, ".requires_grad_(False)", "", "test_golden_parameters.py::test_names_and_shapes"
    ),
    "boot from the end of the dream": Mutation(AGENT, "bootstrap = returns[:, 0]", "bootstrap = returns[:, -1]", TOTAL),
    "rep weighs 1": Mutation(AGENT, '"rep": 0.1', '"rep": 1.0', TOTAL),
    "repval weighs 1": Mutation(AGENT, '"repval": 0.3', '"repval": 1.0', TOTAL),
    "slow critic starts elsewhere": Mutation(
        AGENT, "        self.behavior.copy_slow_value()\n", "", "test_agent.py::test_the_slow_critic_starts_as_a_copy"
    ),
}

ACTING = {
    "previous action forgotten": Mutation(AGENT, "ActState(now, action)", "ActState(now, state.action)", ACTED),
    "episode start ignored": Mutation(
        AGENT,
        "state.world, prev_action, is_first.unsqueeze(1)",
        "state.world, prev_action, torch.zeros_like(is_first).unsqueeze(1)",
        ACTED,
    ),
    "uniforms for a normal": Mutation(
        AGENT,
        "noise.uniform if key.classes else noise.normal",
        "noise.uniform",
        "test_agent.py::test_noise_is_uniform_for_classes_and_normal_for_values",
    ),
}

OPTIMIZER = {
    "no clipping": Mutation(LAPROP, "if agc:", "if not agc:", UPDATE),
    "clipping by row": Mutation(
        LAPROP,
        "clipped = torch._foreach_div(grads, (norms / limit).clamp(min=1.0).unbind())",
        "clipped = [g / (g.norm(dim=-1, keepdim=True) / (agc * p.norm(dim=-1, keepdim=True).clamp(min=MIN_NORM))).clamp(min=1.0) for g, p in zip(grads, params)]",
        CLIPPED,
    ),
    "least norm 1": Mutation(LAPROP, "0.9, 0.999, 1e-20, 1e-3", "0.9, 0.999, 1e-20, 1.0", CLIPPED),
    "no least norm": Mutation(LAPROP, "0.9, 0.999, 1e-20, 1e-3", "0.9, 0.999, 1e-20, 1e-8", CLIPPED),
    "scale of the unclipped gradient": Mutation(
        LAPROP, "torch._foreach_mul(clipped, clipped)", "torch._foreach_mul(grads, grads)", UPDATE
    ),
    "beta2 0.99": Mutation(LAPROP, "0.9, 0.999, 1e-20", "0.9, 0.99, 1e-20", UPDATE),
    "beta1 0.95": Mutation(LAPROP, "0.9, 0.999, 1e-20", "0.95, 0.999, 1e-20", UPDATE),
    "eps 1e-8": Mutation(LAPROP, "0.9, 0.999, 1e-20", "0.9, 0.999, 1e-8", UPDATE),
    "momentum before scaling": Mutation(
        LAPROP,
        "torch._foreach_lerp(mu, torch._foreach_div(clipped, scale), 1 - BETA1)\n    updates = torch._foreach_mul(first, factor)",
        "torch._foreach_lerp(mu, list(clipped), 1 - BETA1)\n    updates = torch._foreach_mul(torch._foreach_div(first, scale), factor)",
        UPDATE,
    ),
    "variance without correction": Mutation(
        LAPROP, "torch._foreach_div(second, correction)", "[x.clone() for x in second]", UPDATE
    ),
    "momentum without correction": Mutation(LAPROP, "-lr / (1 - BETA1**step)", "-lr", UPDATE),
    "warm-up from 1": Mutation(
        OPTIM, "((self.step_count - 1) / self.warmup)", "(self.step_count / self.warmup)", WARMUP
    ),
    "warm-up without end": Mutation(OPTIM, ".clamp(max=1.0)", "", WARMUP),
    "decay of everything": Mutation(OPTIM, 'if self.weight_decay and name.endswith("kernel")', "if name", UPDATE),
    "gradients pile up": Mutation(
        OPTIM,
        "            param.grad = None\n",
        "            pass\n",
        "test_steps.py::test_an_update_leaves_no_gradient_to_the_next_one",
    ),
    "slow critic before the optimizer": Mutation(
        LAPROP, "[thetas[i] for i in slow_index]", "[params[i] for i in slow_index]", AFTER
    ),
    "slow critic stands still": Mutation(LAPROP, "(slow, averages)", "([], [])", AFTER),
}
