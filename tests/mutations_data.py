"""Mistakes in the environments, the replay ring, the noise, the schedule and the loop."""

from mutations import Mutation

NOISE, SCHEDULE, REPLAY, WINDOWS, BACKEND, ACTION, EPISODES, STEPS, LEARNER, LOOP = (
    f"fastdreamer/{name}.py"
    for name in (
        "noise", "schedule", "replay", "replay_window", "env_backend", "env_action", "episodes", "steps", "learner", "loop",
    )
)  # fmt: skip
PHILOX = "kernels/fastdreamer_kernels/philox/reference.py"

STREAM = "test_env.py::test_what_an_environment_says_becomes_flags"
MASK = "test_steps.py::test_mask_action_zeroes_rows_without_an_action"
BOUNDS = "test_env_action.py::test_rounding_does_not_leave_float64_bounds"
KINDS = "test_env_spaces.py::test_every_action_kind"
RANGE = "test_replay.py::test_the_newest_windows_of_all_environments_can_be_sampled"
ONLINE = "test_replay.py::test_online_windows_come_first_in_order_and_once"
DROPPED = "test_replay.py::test_online_windows_that_are_too_old_are_dropped"
DRAWN = "test_replay.py::test_windows_are_drawn_uniformly_with_replacement"
OVERLAP = "test_replay.py::test_overlapping_windows_keep_the_states_of_the_highest_batch_index"
SOURCES = "test_replay.py::test_every_window_writes_what_the_last_one_with_the_same_record_does"
FLAGS = "test_golden_replay.py::test_flags_of_abandoned_episodes"
RATIO = "test_golden_schedule.py::test_updates_at_every_step"
ANSWERS = "test_noise.py::test_philox_gives_the_published_answers"
PLACES = "test_noise.py::test_a_word_is_a_function_of_seed_stream_rank_counter_and_place"
MADE = "test_noise.py::test_uniforms_and_normals_are_made_of_the_words"
SCORES = "test_episodes.py::test_scores_and_lengths_of_two_environments"
ACTED = "test_steps.py::test_actions_and_states_are_those_of_the_agent_and_are_stored"
SKIPPED = "test_steps.py::test_an_update_that_is_not_finite_changes_nothing_and_is_counted"
ORDER = "test_learner.py::test_sync_is_the_official_order"
LAGS = "test_learner.py::test_the_policy_lags_by_what_it_says"
STORED = "test_training.py::test_what_a_step_stores"
UPDATED = "test_training.py::test_an_update_writes_fresh_states_back"
WINDOW = "test_golden_agent.py::test_window_of_a_batch"
WRITTEN = "test_golden_agent.py::test_fresh_states_replace_the_trained_records"

ENVIRONMENT = {
    "reward of a reset kept": Mutation(
        BACKEND,
        "np.where(raw.first, np.float32(0), raw.reward.astype(np.float32))",
        "raw.reward.astype(np.float32)",
        STREAM,
        raises=True,
    ),
    "time limit is terminal": Mutation(BACKEND, "is_last, ended & is_last", "is_last, is_last", STREAM),
    "game over ignored": Mutation(
        BACKEND, "raw.terminated if raw.game_over is None else raw.game_over", "raw.terminated", STREAM
    ),
    "time limit goes unseen": Mutation(BACKEND, "raw.terminated | raw.truncated", "raw.terminated", STREAM),
    "last action kept": Mutation(STEPS, "value.ndim - 1)), 0) for", "value.ndim - 1)), 1) for", MASK),
    "action not clipped": Mutation(
        ACTION,
        "(np.clip(value.astype(np.float64), -1, 1) + 1) / 2\n        return np.clip(self.low + share * (self.high - self.low), self.low, self.high)",
        "(value.astype(np.float64) + 1) / 2\n        return (self.low + share * (self.high - self.low))",
        KINDS,
    ),
    "action rounded out of its bounds": Mutation(
        ACTION,
        "np.clip(self.low + share * (self.high - self.low), self.low, self.high)",
        "(self.low + share * (self.high - self.low))",
        BOUNDS,
    ),
    "action scaled from 0": Mutation(ACTION, "self.low + share * (self.high - self.low)", "share * self.high", KINDS),
    "first class is 0": Mutation(ACTION, "(value.astype(np.int64) + self.start)", "value", KINDS),
}

RING = {
    "window of T records": Mutation(
        REPLAY, "max(self.length - self.batch_length, 0)", "max(self.length - self.batch_length + 1, 0)", RANGE
    ),
    "capacity of each environment": Mutation(
        REPLAY, "high - self.capacity, ", "high - self.capacity * self.num_envs, ", RANGE
    ),
    "newest window never drawn": Mutation(
        REPLAY, "low + _below(high - low, ", "low + _below(max(high - low - 1, 1), ", RANGE
    ),
    "online from record 0": Mutation(REPLAY, "(1 + period * span)", "(period * span)", ONLINE),
    "online every T records": Mutation(REPLAY, "span = self.batch_length + 1", "span = self.batch_length", ONLINE),
    "online window served again": Mutation(
        REPLAY, "            self.served += 1\n", "            self.served += len(fresh) % 2\n", ONLINE
    ),
    "online too old": Mutation(REPLAY, "if window >= low:", "if window >= 0:", DROPPED),
    "online windows last": Mutation(
        REPLAY, "window[: len(fresh)] = fresh", "window[len(window) - len(fresh) :] = fresh", ONLINE
    ),
    "action not shifted": Mutation(
        WINDOWS, 'self._context if key.startswith("action/") else self._trained', "self._trained", WINDOW
    ),
    "start state a step late": Mutation(
        WINDOWS, "self._env, self._context, 1, out", "self._env, self._trained, 1, out", WINDOW
    ),
    "abandoned episodes go on": Mutation(
        WINDOWS, '        out["is_last"][:, :-1] |= out["is_first"][:, 1:]\n', "", FLAGS
    ),
    "end marked at the next start": Mutation(
        WINDOWS,
        'out["is_last"][:, :-1] |= out["is_first"][:, 1:]',
        'out["is_last"][:, 1:] |= out["is_first"][:, 1:]',
        FLAGS,
    ),
    "context overwritten": Mutation(
        WINDOWS,
        "plan.start[:, None] + np.arange(1, self.time + 1)",
        "plan.start[:, None] + np.arange(self.time)",
        WRITTEN,
    ),
    "lowest batch index wins": Mutation(
        WINDOWS,
        "last = batch - 1 - holds[:, :, ::-1].argmax(2)",
        "last = holds.argmax(2)",
        OVERLAP,
    ),
    "every window writes": Mutation(
        WINDOWS, "source[:] = winners(plan, self.time)", "source.flat = range(source.size)", SOURCES
    ),
}

CLOCKWORK = {
    "Philox with 9 rounds": Mutation(PHILOX, "ROUNDS = 10", "ROUNDS = 9", ANSWERS),
    "counter stands still": Mutation(NOISE, "        self.counter.add_(1)\n", "", PLACES),
    "streams share numbers": Mutation(NOISE, "(seed, stream << 16 | rank)", "(seed, rank)", PLACES),
    "cos and sin swapped": Mutation(
        PHILOX,
        "out[:, lane] = angle.cos().mul_(radius)\n        out[:, lane + 1] = angle.sin_()",
        "out[:, lane] = angle.sin().mul_(radius)\n        out[:, lane + 1] = angle.cos_()",
        MADE,
    ),
    "uniform reaches 1": Mutation(PHILOX, "out.mul_(2.0**-24)", "out.mul_(1 / (2.0**24 - 1))", MADE),
    "normal of half the variance": Mutation(PHILOX, ".log_().mul_(-2).sqrt_()", ".log_().mul_(-1).sqrt_()", MADE),
    "no update at first": Mutation(SCHEDULE, "return 1\n", "return 0\n", RATIO),
    "fraction of an update dropped": Mutation(
        SCHEDULE, "self._previous += updates / self.updates_per_step", "self._previous = float(step)", RATIO
    ),
    "ratio of updates to steps": Mutation(
        SCHEDULE, "train_ratio / (batch_size * batch_length)", "train_ratio / batch_size", RATIO
    ),
    "reset counts as a step": Mutation(
        EPISODES, "np.where(is_first, 0, self._length + 1)", "np.where(is_first, 1, self._length + 1)", SCORES
    ),
    "score goes on": Mutation(
        EPISODES, "np.where(is_first, 0.0, self._score + reward)", "self._score + reward", SCORES
    ),
    "states of the step before": Mutation(
        STEPS,
        "self._record | actions | world)",
        "self._record | actions | self.agent.initial(self.rows).world._asdict())",
        ACTED,
    ),
    "last action stored": Mutation(STEPS, 'mask_action(action, self._record["is_last"])', "action", STORED),
    "fresh states not written back": Mutation(STEPS, "        replay.write_back(*out.states, finite)\n", "", UPDATED),
    "what is not finite is written back": Mutation(
        STEPS, "replay.write_back(*out.states, finite)", "replay.write_back(*out.states)", SKIPPED
    ),
    "statistics of what is not finite": Mutation(
        STEPS, "statistic.copy_(torch.where(finite, statistic, value))", "statistic.add_(0 * value)", SKIPPED
    ),
    "metrics of what is not finite": Mutation(
        STEPS, "self.metrics.add(out.metrics | optimizer, finite)", "self.metrics.add(out.metrics | optimizer)", SKIPPED
    ),
    "weights handed over late": Mutation(
        LEARNER, 'if self.schedule == "sync" and self.lag:', 'if self.schedule == "sync" and self.lag > 1:', ORDER
    ),
    "weights handed over early": Mutation(
        LEARNER,
        'if self.schedule == "pipeline" and self.lag:',
        'if self.schedule == "pipeline" and not self.lag:',
        LAGS,
    ),
    "steps of one environment": Mutation(
        LOOP,
        "return self.learner.replay.length * self.config.env.num_envs",
        "return self.learner.replay.length",
        STORED,
    ),
}
