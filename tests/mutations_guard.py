"""Mistakes in what becomes of values that are not finite."""

from mutations import Mutation

SKIPS, MEND, REPLAY, STEPS, GUARD = (
    f"fastdreamer/{name}.py" for name in ("skips", "replay_mend", "replay", "steps", "guard")
)

COUNTED = "test_skips.py::test_the_most_in_a_row_and_the_last_plan_are_those_of_a_list"
CLEARED = "test_skips.py::test_what_was_cleared_is_forgotten"
WARMED = "test_skips.py::test_a_warm_up_is_not_counted"
MENDED = "test_replay_mend.py::test_every_held_value_is_mended_and_no_other"
LOADED = "test_replay_mend.py::test_what_was_mended_is_what_is_loaded"
FURTHER = "reliability/test_nonfinite.py::test_the_second_roll_back_goes_further_back"

NOT_FINITE = {
    "the skips of now, not the most": Mutation(
        SKIPS, "torch.maximum(self.most, self._recent.sum())", "self._recent.sum()", COUNTED
    ),
    "99 updates": Mutation(SKIPS, "remainder_(RECENT)", "remainder_(RECENT - 1)", COUNTED),
    "the plan of any update": Mutation(SKIPS, "torch.where(skipped == 0, self.plan, plan)", "plan", COUNTED),
    "old skips count after a roll-back": Mutation(
        SKIPS, "self.most.zero_(), self._recent.zero_()", "self.most.zero_()", CLEARED
    ),
    "a warm-up counts": Mutation(STEPS, ", *self.skips.state()]", "]", WARMED),
    "a ring that has turned": Mutation(
        MEND, "((first, turn), (turn, end)) if first < turn else ((first, end),)", "((first, end),)", MENDED
    ),
    "absent observations are mended": Mutation(MEND, " & (part != fill)", "", MENDED),
    "files keep what was mended": Mutation(REPLAY, "self._record_files.changed(records)", "pass", LOADED),
    "no judgement before a save": Mutation(GUARD, "        self.judge(int(learner.train.skips.most))\n", "", FURTHER),
    "the newest checkpoint twice": Mutation(GUARD, "back=self.roll_backs - 1", "back=0", FURTHER),
    "skips stay after a roll-back": Mutation(GUARD, "        self.training.learner.forget_skips()\n", "", FURTHER),
}
