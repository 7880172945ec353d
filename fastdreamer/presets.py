"""Named starting points: the official benchmarks, and small jobs for a CPU. Source: SPEC 3.2 and 3.3.

A field that is not named here has the official default.
"""

from fastdreamer.config import Config, EnvConfig, LossConfig, ModelConfig, OptimConfig, Option, ReplayConfig, RunConfig

ATARI: dict[str, Option] = {
    "img_height": 96,
    "img_width": 96,
    "gray_scale": True,
    "stack_num": 1,
    "frame_skip": 4,
    "repeat_action_probability": 0.25,
    "full_action_space": True,
    "noop_max": 30,
    "use_fire_reset": False,
    "episodic_life": False,
    "reward_clip": False,
    "max_episode_steps": 27000,  # x 4 frames
}
ATARI100K: dict[str, Option] = ATARI | {
    "img_height": 64,
    "img_width": 64,
    "gray_scale": False,
    "repeat_action_probability": 0.0,
    "full_action_space": False,
}
PIXELS: dict[str, Option] = {"from_pixels": True, "render_width": 64, "render_height": 64}

# Minutes on a CPU instead of days on a GPU: where it differs from size1m's defaults it is to learn in few updates.
CARTPOLE = Config(
    preset="cartpole",
    env=EnvConfig(id="CartPole-v1"),
    model=ModelConfig(size="size1m"),
    # Values grew by 0.03 to 0.06 per update where it was watched, so a nearer limit is closer. With 50, one run of
    # three stayed at a return of 120; with 333, one of three at 250.
    loss=LossConfig(discount_horizon=150),
    # Thousands of updates instead of hundreds of thousands.
    optim=OptimConfig(lr=3e-4, warmup=100),
    # An eighth of the data takes a seventh of the time: more updates per minute. Batches of 16 x 64 were not tried.
    replay=ReplayConfig(batch_size=8, batch_length=16),
    # Environment steps are cheap: fresh data instead of more of the old. On tensors this small a second thread costs
    # more than it brings: 194 ms per update instead of 114 (Xeon, 2 cores, torch 2.13).
    run=RunConfig(steps=80_000, train_ratio=8, threads=1, solved=475),
)

PRESETS: dict[str, Config] = {
    config.preset: config
    for config in (
        CARTPOLE,
        Config(
            preset="catch",
            env=EnvConfig(id="Catch-v0"),
            model=ModelConfig(size="size1m"),
            run=RunConfig(steps=60_000, train_ratio=64),
        ),
        Config(
            preset="atari",
            env=EnvConfig(id="Pong-v5", options=ATARI),
            run=RunConfig(steps=51_000_000),
        ),
        Config(
            preset="atari100k",
            env=EnvConfig(id="Pong-v5", num_envs=1, options=ATARI100K),
            run=RunConfig(steps=110_000, train_ratio=256),
        ),
        Config(
            preset="dmc_proprio",
            env=EnvConfig(id="WalkerWalk-v1"),
            model=ModelConfig(size="size1m"),
            run=RunConfig(steps=1_100_000, train_ratio=1024),
        ),
        Config(
            preset="dmc_vision",
            env=EnvConfig(id="WalkerWalk-v1", options=PIXELS),
            run=RunConfig(steps=1_100_000, train_ratio=256),
        ),
        Config(
            preset="procgen",
            env=EnvConfig(id="CoinrunHard-v0"),
            run=RunConfig(steps=110_000_000, train_ratio=64),
        ),
        Config(
            preset="crafter",
            env=EnvConfig(id="fastdreamer.env_crafter:Crafter", num_envs=1),
            run=RunConfig(steps=1_100_000, train_ratio=512),
        ),
        Config(
            preset="minigrid",
            env=EnvConfig(id="MiniGrid-Empty-5x5-v0", options={"keys": "image,direction"}),
            model=ModelConfig(size="size1m"),
            run=RunConfig(steps=200_000, train_ratio=128),
        ),
    )
}
