"""The README says what the code does."""

from pathlib import Path

from fastdreamer.presets import PRESETS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_table_of_presets_is_that_of_the_code() -> None:
    rows = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| `")]
    table = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in PRESETS}
    assert list(table) == list(PRESETS)
    for name, (env, steps, ratio, size) in table.items():
        config = PRESETS[name]
        expected = f"`{config.env.id}` x {config.env.num_envs}", f"{config.run.steps:,}", f"{config.run.train_ratio:g}"
        assert (env, steps, ratio) == expected, name
        assert size.split()[0] == config.model.size, name


def test_the_layout_names_files_that_exist() -> None:
    layout = README.split("## Layout")[1].split("## Glossary")[0]
    for word in layout.split():
        if word.endswith(".py") and word not in ("__init__.py", "reference.py"):
            root = Path(__file__).parents[1]
            assert (root / "fastdreamer" / word).exists() or (root / word).exists(), word
