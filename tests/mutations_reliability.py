"""Mistakes in what keeps a run: where episodes are, environments that fail, what is said at the end."""

from mutations import Mutation

CURSOR, ENV, GYM, HOST, FAULTS, POOL, LEARNER, LOOP, RUN, WATCHDOG, SAVING, RECORDS, LATENTS, FILES, REPLAY = (
    f"fastdreamer/{name}.py"
    for name in (
        "env_cursor", "env", "env_gym", "env_host", "env_faults", "env_envpool", "learner", "loop", "run", "watchdog",
        "saving", "replay_records", "replay_latents", "replay_files", "replay",
    )
)  # fmt: skip

AGAIN = "test_env_cursor.py::test_the_records_after_a_save_come_again"
DIFFERS = "test_env_cursor.py::test_what_does_not_repeat_itself_is_cut"
ANEW = "test_env_cursor.py::test_a_pool_begins_new_episodes_with_seeds_of_the_moment"
FAILED = "test_env_cursor.py::test_what_failed_is_not_played_again"
LONG = "test_env_cursor.py::test_a_long_episode_is_cut"
NONE = "test_env_cursor.py::test_a_state_that_is_none_is_refused"
SEEDS = "test_env_cursor.py::test_later_episodes_have_seeds_of_their_own"
RESUMED = "reliability/test_resume.py::test_also_with_a_pool_and_with_a_policy_that_lags"
REPLACED = "reliability/test_env_faults.py::test_one_process_is_replaced_and_the_others_go_on"
BROKEN = "reliability/test_env_faults.py::test_an_environment_that_fails_again_and_again_is_called_broken"
INLINE = "reliability/test_env_faults.py::test_in_this_process_the_error_is_the_runs"
REMADE = "reliability/test_env_faults.py::test_a_pool_that_shows_nan_is_made_anew"
ENDS = (
    "reliability/test_env_faults.py::test_a_pool_that_hangs_or_crashes_ends_the_run_with_a_checkpoint_and_the_command"
)
MOMENT = "test_saving.py::test_it_holds_the_moment_it_was_taken"
ONE = "test_saving.py::test_one_is_written_at_a_time"
NEXT = "test_saving.py::test_what_was_not_written_is_written_by_the_next"
LARGE = "test_saving.py::test_what_is_too_large_to_copy_is_written_at_once"
WRITTEN = "test_replay_files.py::test_records_are_written_once_and_states_when_they_changed"
FEW = "test_replay_files.py::test_many_small_files_become_few"
OLDER = "test_replay_files.py::test_a_chunk_that_is_whole_again_is_newer_than_changes"
PILED = "test_replay_files.py::test_changes_do_not_pile_up"
LOADED = "test_replay_files.py::test_a_loaded_ring_goes_on_as_one_never_interrupted"

CURSORS = {
    "the same seed for every episode": Mutation(CURSOR, "if record == 0 else", "if record >= 0 else", SEEDS),
    "first seed is another": Mutation(CURSOR, "seed if record == 0 else", "seed + 1 if record == 0 else", SEEDS),
    "long episode gone on with": Mutation(CURSOR, " | (lengths > len(self._actions))", "", LONG, raises=True),
    "ended episode replayed": Mutation(CURSOR, "lengths[self.ended | ", "lengths[", AGAIN, raises=True),
    "failed episode replayed": Mutation(CURSOR, " | self._waiting] = 0", "] = 0", FAILED, raises=True),
    "actions of others": Mutation(CURSOR, "ends[at] - lengths[at] : ends[at]", "0 : lengths[at]", AGAIN),
    "a count that is none": Mutation(CURSOR, "not isinstance(value, int) or ", "", NONE, raises=True),
    "not compared": Mutation(ENV, "if digest(obs) == cursors[index].digest", "if True", DIFFERS),
    "last action sent twice": Mutation(GYM, '.items()})\n        return', ".items()} | actions)\n        return", AGAIN, raises=True),
    "last action not sent": Mutation(ENV, "reset[same] = False", "reset[same] = True", AGAIN),
    "pool keeps its seed": Mutation(POOL, "self._made(episode_seed(self._seed, record))", "self._made(self._seed)", ANEW),
    "episode seed forgotten": Mutation(GYM, "episode_seed(self._seed + index, self._record)", "self._seed + index", AGAIN),
    "episode sums forgotten": Mutation(
        LOOP, 'self.episodes.load_state_dict(resumed.value("episodes", dict))', "pass", RESUMED
    ),
    "carry forgotten": Mutation(LEARNER, '            "acting": self.policy.carry(),\n', "", RESUMED),
    "environments not restored": Mutation(
        LOOP, 'self.env.restore(EnvState(resumed.value("envs", dict), actions))', "pass", RESUMED
    ),
}  # fmt: skip

FAULTY = {
    "rebuilt for ever": Mutation(FAULTS, "if len(recent) == MOST:", "if False:", BROKEN),
    "not counted": Mutation(FAULTS, "self.count += 1", "pass", REPLACED),
    "a rebuilt one is not first": Mutation(GYM, "self._first[index] = True", "pass", REPLACED),
    "hangs for ever": Mutation(HOST, "max(1000 * left, 0)", "40_000", REPLACED),
    "rebuilt in this process": Mutation(GYM, "if not self.supervised:\n            raise error", "", INLINE),
    "pool goes on with the old episodes": Mutation(POOL, "self.resume(self._record, {})", "pass", REMADE, raises=True),
    "a rebuilt pool is not first": Mutation(POOL, "np.ones_like(self._first)", "self._first", REMADE),
    "hang unnoticed": Mutation(WATCHDOG, "time.monotonic() - since > self._seconds", "False", ENDS, raises=True),
    "hang not saved": Mutation(
        RUN, "        self.save(wait=True)\n        self.words.drop()", "        self.words.drop()", ENDS
    ),
    "command not printed after a crash": Mutation(WATCHDOG, "self._process is None:\n", "False:\n", ENDS),
    "command printed twice": Mutation(RUN, "self.words.drop()", "pass", ENDS),
}

SAVES = {
    "weights of later": Mutation(LEARNER, '.detach().to("cpu", copy=True)', ".detach()", MOMENT),
    "ring of later": Mutation(FILES, "[each.copied() for each in half]", "half", MOMENT),
    "two at a time": Mutation(RUN, "if self.saving is not None:\n            return", "if False:\n            return", ONE),
    "changes lost with a save": Mutation(LATENTS, "self._outdated |= taken", "pass", NEXT),
    "a save that failed is built on": Mutation(SAVING, "self._ring.drop()", "self._ring.keep()", NEXT, raises=True),
    "nobody builds on a save": Mutation(SAVING, "        self._ring.keep()\n", "", MOMENT),
    "written while the ring goes on": Mutation(SAVING, "if not ring.copied:", "if False:", LARGE),
    "renewed states not noted": Mutation(
        REPLAY, "self._latent_files.changed(plan.env[:, None], self._windows.trained_records(plan))", "pass", WRITTEN,
        raises=True,
    ),
    "new states not noted": Mutation(
        REPLAY, "self._latent_files.changed(slice(None), self.length)", "pass", LOADED, raises=True
    ),
    "states of another environment": Mutation(REPLAY, "plan.env[:, None], self._w", "1 - plan.env[:, None], self._w", WRITTEN),
    "never whole again": Mutation(LATENTS, "2 * rows >= outdated.size", "False", WRITTEN),
    "changes pile up": Mutation(LATENTS, "len(self._changes) >= MOST_CHANGES", "False", PILED),
    "changes older than their base": Mutation(LATENTS, "save > bases.get(number, -1)", "True", OLDER),
    "parts pile up": Mutation(RECORDS, "len(parts) == MOST_PARTS", "False", FEW),
    "records written twice": Mutation(RECORDS, "done = parts[-1].end if parts else begin", "done = begin", WRITTEN),
}  # fmt: skip
