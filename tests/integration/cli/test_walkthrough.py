"""Following a page of the docs finds what is not true there."""

from pathlib import Path

import pytest

from walkthrough import Walkthrough, stable

PAGE = """\
# Page

Save this as `job.yaml`:

```yaml
name: hub
```

```bash
export NAME="$(cat job.yaml)"
echo \\
    "$NAME" 12s
```

The output is similar to:

```
name: hub   3.5s
```

## Rest

```json
{}
```
"""


def walkthrough(folder: Path, page: str = PAGE, **options: dict[str, str]) -> Walkthrough:
    file = folder / "page.md"
    file.write_text(page)
    settings = {"replaced": {}, "examples": {"json": "not needed"}, **options}
    return Walkthrough(file, folder, {"PATH": "/usr/bin:/bin"}, **settings)


def test_commands_have_the_files_and_variables_of_the_page(tmp_path: Path) -> None:
    page = walkthrough(tmp_path, replaced={"hub": "here"})
    page.until("Rest")
    assert [one.text.split()[0] for one in page.executed] == ["export", "echo"]
    assert page.executed[-1].output == "name: here 12s\n"
    page.until()
    assert page.differences == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("echo", "false; echo"), r"page.md:9: `false; echo .*`: exit status 1"),
        (('"$NAME"', '"$MISSING"'), r"MISSING: unbound variable"),
        (("Save this", "See this"), r"page.md:5 is neither executed, nor written, nor an example"),
        (("```json", "```toml"), r"has no longer examples: \['json'\]"),
    ],
)
def test_a_page_that_is_not_true_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in PAGE
    with pytest.raises(AssertionError, match=message):
        walkthrough(tmp_path, PAGE.replace(*change)).until()


def test_an_output_that_is_not_that_of_its_command_is_found(tmp_path: Path) -> None:
    page = walkthrough(tmp_path, PAGE.replace("hub   3.5s", "other 3.5s"))
    page.until("Rest")
    (difference,) = page.differences
    assert difference.startswith("page.md:17 is not what `echo ")
    assert difference.endswith(" prints:\nname: hub 12s\n")


def test_a_replacement_that_the_page_no_longer_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"has no longer what is replaced: \['s3.example.com'\]"):
        walkthrough(tmp_path, replaced={"s3.example.com": "127.0.0.1"})


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("topics  Running  27%  2m14s", "topics Running 3% 12s", True),
        ("topics  Running  27%", "topics  Failed  27%", False),
        ("run 1", "run 2", False),
        ("s3://models/topics/runs/r0001-1f3a9c42/model", "s3://models/topics/runs/r0001-9d0b1a2e/model", True),
        ("s3://models/topics/runs/r0001-1f3a9c42/model", "s3://models/topics/runs/r0002-1f3a9c42/model", False),
        ("promoted: 2026-03-01T12:00:00Z by jane", "promoted: 2026-12-24T08:15:30Z by jane", True),
        ("digest 0a1b2c3d4e5f", "digest ffeeddccbb0a", True),
        ("accuracy  10.0 %  90.0 %  +80.0 points", "accuracy 7 % 88.5 % +81.5 points", True),
        ("4 files, 87.2 MiB, digest", "4 files, 139.8 KiB, digest", True),
        ("4 files, 87.2 MiB", "5 files, 87.2 MiB", False),
    ],
)
def test_outputs_are_compared_without_what_varies(first: str, second: str, same: bool) -> None:
    assert (stable(first) == stable(second)) is same
