"""Episodes as mp4: what an environment draws of itself, or else the image that it observes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdreamer.env import Env, EnvError, Step

RATE = 15
"""Pictures per second."""
SIDE = 256
"""Images that are observed are enlarged by a whole number to about this many pixels."""

Array = NDArray[np.generic]
Picture = NDArray[np.uint8]


class Video:
    """H.264 of pictures (height, width, 3) of one size. Raises OSError where the file cannot be made."""

    def __init__(self, path: Path) -> None:
        import av

        self._container = av.open(path, "w")
        self._stream = self._container.add_stream("libx264", rate=RATE, options={"crf": "23"})
        self._stream.pix_fmt = "yuv420p"
        self._begun = False

    def add(self, picture: Picture) -> None:
        """The next picture. Raises ValueError where its size is another than before."""
        import av

        height, width, _ = picture.shape
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))  # the format has no odd sides
        if not self._begun:
            self._stream.height, self._stream.width, self._begun = *even.shape[:2], True
        if even.shape[:2] != (self._stream.height, self._stream.width):
            raise ValueError(
                f"pictures of a video must have one size, got {width}x{height} after"
                f" {self._stream.width}x{self._stream.height}"
            )
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def close(self) -> None:
        """Ends the file."""
        if self._begun:
            self._container.mux(self._stream.encode())
        self._container.close()


class Camera:
    """Pictures of environments.

    reason   why there is nothing to see, once `picture` gave None
    """

    def __init__(self, env: Env, blind: str = "") -> None:
        """`blind`: why the environments do not draw themselves, where they do not."""
        self.env, self.reason = env, blind

    def picture(self, step: Step, row: int) -> Picture | None:
        """(height, width, 3) of environment `row`, where `step` is what `env` showed last; None where it has none."""
        if not self.reason:
            try:
                return self.env.render(row)
            except EnvError as error:
                self.reason = str(error)
        for key, space in self.env.obs_space.items():
            if space.kind == "image":
                scale = max(1, SIDE // space.shape[0])
                return colours(step.obs[key][row]).repeat(scale, 0).repeat(scale, 1)
        return None


class Film:
    """Episodes of a camera's environments as files: episode-0.mp4 and so on in a folder that exists.

    paths   those that are begun
    """

    def __init__(self, camera: Camera, folder: Path) -> None:
        self.paths: list[Path] = []
        self._camera, self._folder, self._videos = camera, folder, dict[int, Video]()

    def add(self, step: Step, rows: Sequence[int]) -> None:
        """What the environments of `rows` show; nothing where the camera sees nothing."""
        for row in rows:
            picture = self._camera.picture(step, row)
            if picture is None:
                return
            if row not in self._videos:
                self.paths.append(self._folder / f"episode-{len(self.paths)}.mp4")
                self._videos[row] = Video(self.paths[-1])
            self._videos[row].add(picture)
            if step.is_last[row]:
                self._videos.pop(row).close()

    def close(self) -> None:
        """Ends the files of episodes that were cut short."""
        while self._videos:
            self._videos.popitem()[1].close()


def colours(images: Array) -> Picture:
    """(..., channels): the last three of them, which are the newest, or the last one thrice."""
    return np.asarray(images[..., -3:] if images.shape[-1] >= 3 else images[..., -1:].repeat(3, -1), np.uint8)
