"""The project that `ech-workers worker init` writes."""

import json
import re
from pathlib import Path

import pytest

from ech_workers.cli import run
from ech_workers.errors import ConfigError
from ech_workers.worker import create, layout

WORDS = re.compile(r"[A-Za-z_]\w*")


def texts(folder: Path, pattern: str) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.glob(pattern))}


def declared(folder: Path) -> set[str]:
    text = "\n".join(texts(folder, "src/*.ts").values())
    return {name for _, name in layout._DECLARATION.findall(text)}


def test_two_projects_have_no_name_path_page_or_file_in_common(tmp_path: Path) -> None:
    one, other = create(tmp_path / "1", seed=1), create(tmp_path / "2", seed=2)
    assert one.name != other.name
    assert one.entry_path != other.entry_path
    shown = [
        set(re.findall(r">([^<>\n]+)<", "".join(texts(each.directory, "src/*.html").values()))) for each in (one, other)
    ]
    assert not shown[0] & shown[1]
    sources = [texts(each.directory, "src/*.ts") for each in (one, other)]
    assert not set(sources[0].values()) & {text for name, text in sources[1].items() if not name.endswith(".d.ts")}
    common = declared(one.directory) & declared(other.directory)
    assert len(common) < 5, common


def test_a_seed_gives_the_same_project_again(tmp_path: Path) -> None:
    for name in ("1", "2"):
        create(tmp_path / name, seed=7)
    assert texts(tmp_path / "1", "**/*.*") == texts(tmp_path / "2", "**/*.*")


def test_no_two_modules_of_the_template_declare_the_same_name() -> None:
    """In some projects they are one file."""
    modules = texts(Path(layout.__file__).with_name("template"), "src/*.ts").values()
    names = [name for text in modules for _, name in layout._DECLARATION.findall(text)]
    assert len(names) > 50
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_of_the_template_s_names_is_left(tmp_path: Path, seed: int) -> None:
    project = create(tmp_path, seed=seed)
    template = Path(layout.__file__).with_name("template")
    written = texts(tmp_path, "**/*.*")
    assert not declared(tmp_path) & {
        name for file in (template / "src").glob("*.ts") for _, name in layout._DECLARATION.findall(file.read_text())
    }
    for path, text in written.items():
        if path != "package-lock.json":
            assert not set(layout.VARIABLES) & set(WORDS.findall(text)), path
            assert "PROJECT_NAME" not in text
    for path in ("README.md", "wrangler.jsonc"):
        assert project.name in written[path]
        assert project.entry_path in written[path]
    for name in project.variables.values():
        assert f"`{name}`" in written["README.md"]
    assert project.main in written["wrangler.jsonc"]
    assert (tmp_path / project.main).is_file()
    package = json.loads((tmp_path / "package.json").read_text())
    lock = json.loads((tmp_path / "package-lock.json").read_text())
    assert (package["name"], lock["name"], lock["packages"][""]["name"]) == (project.name,) * 3
    assert lock["packages"][""]["devDependencies"] == package["devDependencies"]
    assert all(re.fullmatch(r"[\d.]+", version) for version in package["devDependencies"].values())


def test_the_readme_says_what_the_platform_s_terms_say(tmp_path: Path) -> None:
    create(tmp_path)
    text = " ".join((tmp_path / "README.md").read_text().split())
    assert "Cloudflare's terms do not allow a Worker to be used as a proxy" in text
    assert "give the client several servers" in text


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        create(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["worker", "init", str(tmp_path / "made"), "--name", "quiet-harbour"]) == 0
    shown = capsys.readouterr().out
    secret = re.search(r"npx wrangler secret put (\w+)", shown)
    assert secret
    assert secret[1] in (tmp_path / "made" / "README.md").read_text()
    assert "--server quiet-harbour.ACCOUNT.workers.dev/" in shown


def test_the_command_says_it_as_json_with_a_new_token_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    for name in ("1", "2"):
        assert run(["worker", "init", str(tmp_path / name), "--json"]) == 0
        made.append(json.loads(capsys.readouterr().out))
    assert made[0]["token"] != made[1]["token"]
    assert made[0]["variables"].keys() == set(layout.VARIABLES)
    assert not any(made[0]["token"] in text for text in texts(tmp_path / "1", "**/*.*").values())


@pytest.mark.parametrize("name", ["", "UPPER", "a.b", "-a", "a" * 64])
def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(["worker", "init", str(tmp_path / "made"), "--name", name]) == 2
    assert "is no name of a Worker" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
