"""The two packages: fastdreamer, and fastdreamer_kernels out of kernels/."""

from setuptools import find_packages, setup

setup(
    packages=["fastdreamer", *find_packages("kernels")],
    package_dir={"fastdreamer": "fastdreamer", "fastdreamer_kernels": "kernels/fastdreamer_kernels"},
    package_data={"fastdreamer": ["py.typed"], "fastdreamer_kernels": ["py.typed"]},
)
