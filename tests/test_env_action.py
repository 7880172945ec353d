"""Actions at the very ends of their bounds."""

import numpy as np
from gymnasium import spaces

from fastdreamer.env_action import ActionCodec


def test_rounding_does_not_leave_float64_bounds() -> None:
    """-3.27 + (5.46 + 3.27) is more than 5.46."""
    codec = ActionCodec(spaces.Box(np.array([-3.27]), np.array([5.46]), dtype=np.float64), num_envs=3)
    action = codec.encode({"action": np.array([[-2.0], [1.0], [2.0]], np.float32)})
    np.testing.assert_array_equal(action, [[-3.27], [5.46], [5.46]])
