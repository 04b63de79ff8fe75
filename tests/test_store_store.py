"""The store: ids are content, names move, damage is seen, garbage goes."""

import hashlib
import json

import pytest

from rung.errors import ArtefactError
from rung.store.lineage import ancestors, diff, draw_tree, recipe_artefacts
from rung.store.manifest import find_damage
from rung.store.store import Store
from rung.store.sweep import sweep


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def put(store, *, name=None, kind="corpus", text="hello", config=None, parents=None, key=None):
    """An artefact of one file, committed the way the pipeline does it."""
    content = json.dumps([kind, text, config, parents])
    work = store.begin(key or hashlib.sha256(content.encode()).hexdigest())
    (work.out / "a.txt").write_text(text)
    artefact = store.commit(
        work, kind=kind, stage="test", config=config or {}, parents=parents or {}, notes={}
    )
    work.release()
    if name:
        store.set_name(name, artefact)
    return artefact


def test_the_id_is_the_hash_of_what_the_docstring_says(store):
    artefact = put(store, text="hello", config={"b": 1, "a": [2]})
    sha = hashlib.sha256(b"hello").hexdigest()
    canonical = (
        '{"config":{"a":[2],"b":1},"files":{"a.txt":{"sha256":"' + sha + '","size":5}},'
        '"kind":"corpus","parents":{}}'
    )
    assert artefact.id == hashlib.sha256(canonical.encode()).hexdigest()
    assert artefact.path == store.root / "objects" / artefact.id
    assert artefact.file("a.txt").read_text() == "hello"


def test_notes_and_key_are_outside_the_id_config_parents_and_bytes_inside(store):
    first = put(store, key="1" * 64)
    assert put(store, key="2" * 64).id == first.id
    others = [
        put(store, text="other"),
        put(store, config={"a": 1}),
        put(store, parents={"x": first.id}),
        put(store, kind="dataset"),
    ]
    assert len({first.id, *(a.id for a in others)}) == 5
    assert store.find("1" * 64).id == store.find("2" * 64).id == first.id
    assert store.find("3" * 64) is None


def test_a_stage_that_writes_nothing_or_links_is_refused(store, tmp_path):
    work = store.begin("5" * 64)
    described = {"kind": "corpus", "stage": "t", "config": {}, "parents": {}, "notes": {}}
    with pytest.raises(ArtefactError, match="wrote no files"):
        store.commit(work, **described)
    (work.out / "link").symlink_to(tmp_path)
    with pytest.raises(ArtefactError, match="symbolic link"):
        store.commit(work, **described)
    work.release()
    assert store.ids() == []


def test_leftovers_of_a_killed_run_do_not_reach_the_artefact(store):
    work = store.begin("6" * 64)
    (work.out / "half.tmp").write_text("x")
    (work.run / "state").write_text("kept")
    work.release()
    again = store.begin("6" * 64)
    assert list(again.out.iterdir()) == []
    assert (again.run / "state").read_text() == "kept"
    again.release()
    assert store.ids() == []
    assert store.artefacts() == []


def test_references_by_name_entry_and_prefix(store):
    one, two = put(store, name="first/base", text="1"), put(store, name="second/base", text="2")
    alone = put(store, name="first/text", text="3")
    assert store.open("first/base").id == one.id
    assert store.open("text").id == alone.id
    assert store.open(two.id[:10]).id == two.id
    with pytest.raises(ArtefactError, match="ambiguous: say one of first/base, second/base"):
        store.open("base")
    with pytest.raises(ArtefactError, match="did you mean 'first/text'"):
        store.open("first/txt")
    with pytest.raises(ArtefactError, match="is empty"):
        Store(store.root / "nothing").open("base")
    store.set_name("second/base", one)
    assert store.open("base").id == one.id  # both say the same now


@pytest.mark.parametrize("name", ["../up", "a/b/c", "", ".hidden", "a b", "a/", "/etc", "a+b"])
def test_names_that_could_be_paths_are_refused(store, name):
    artefact = put(store)
    with pytest.raises(ArtefactError, match="is not a name"):
        store.set_name(name, artefact)


def damage_size(artefact):
    artefact.file("a.txt").write_text("hell")


def damage_byte(artefact):
    artefact.file("a.txt").write_text("hellO")


def damage_missing(artefact):
    artefact.file("a.txt").unlink()


def damage_added(artefact):
    (artefact.path / "b.txt").write_text("new")


def damage_manifest(artefact):
    path = artefact.path / "manifest.json"
    path.write_text(path.read_text().replace('"corpus"', '"dataset"'))


def damage_json(artefact):
    (artefact.path / "manifest.json").write_text('{"id": 3')


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_size, r"a.txt has 4 bytes, it was written with 5"),
        (damage_byte, r"a.txt has other bytes"),
        (damage_missing, r"a.txt is missing"),
        (damage_added, r"b.txt was added later"),
        (damage_manifest, r"it was altered"),
        (damage_json, r"manifest.json is damaged"),
    ],
)
def test_every_kind_of_damage_is_refused_with_a_way_out(store, harm, message):
    artefact = put(store, name="x", key="7" * 64)
    assert find_damage(artefact) == []
    harm(artefact)
    with pytest.raises(ArtefactError, match=message + r".*rung gc --damaged"):
        Store(store.root).checked(Store(store.root).open("x"))
    assert len(sweep(store, dry_run=False, damaged=True)) == 1
    assert store.ids() == []
    assert store.find("7" * 64) is None
    assert put(store, key="7" * 64).id == artefact.id  # built anew under the same id


def test_a_flipped_bit_is_seen_at_any_place(store):
    artefact = put(store, text="0123456789" * 50)
    path = artefact.file("a.txt")
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert find_damage(artefact), at
    path.write_bytes(good)
    assert find_damage(artefact) == []


def test_commit_replaces_a_damaged_artefact_of_the_same_id(store):
    artefact = put(store, key="8" * 64)
    damage_byte(artefact)
    put(store, key="9" * 64)
    assert find_damage(store.get(artefact.id)) == []


def test_gc_keeps_what_names_lead_to(store):
    root = put(store, text="root")
    child = put(store, name="child", text="child", parents={"corpus": root.id})
    loose = put(store, text="loose", key="a" * 64)
    half = store.begin("b" * 64)
    half.release()
    found = sweep(store, dry_run=True)
    assert [item.path.name for item in found] == [loose.id]
    assert found[0].size > 5
    assert len(store.ids()) == 3
    sweep(store, dry_run=False)
    assert store.ids() == sorted([root.id, child.id])
    assert not (store.root / "built" / ("a" * 64)).exists()
    assert half.folder.exists()
    sweep(store, dry_run=False, unfinished=True)
    assert not half.folder.exists()
    assert sweep(Store(store.root / "none"), dry_run=False) == []


def test_lineage_lists_parents_first_and_draws_each_branch_once(store):
    text = put(store, name="r/text", text="t")
    base = put(store, name="r/base", kind="model", text="b", parents={"corpus": text.id})
    chat = put(
        store, name="r/chat", kind="model", text="c",
        parents={"model": base.id, "corpora.0": text.id, "other": base.id},
    )  # fmt: skip
    assert list(ancestors(store, chat)) == [text.id, base.id, chat.id]
    assert draw_tree(store, chat).splitlines() == [
        f"r/chat  model {chat.short_id}  test",
        f"|- model: r/base  model {base.short_id}  test",
        f"|  `- corpus: r/text  corpus {text.short_id}  test",
        f"|- corpora.0: r/text  corpus {text.short_id}  test",
        f"`- other: r/base  model {base.short_id}  test  (shown above)",
    ]
    title, names = recipe_artefacts(store, None)
    assert title == "r"
    assert list(names) == ["text", "base", "chat"]
    assert list(recipe_artefacts(store, "base")[1]) == ["text", "base"]
    with pytest.raises(ArtefactError, match="no recipe has been run"):
        recipe_artefacts(Store(store.root / "none"), None)


def test_diff_shows_nested_keys_parents_and_files(store):
    parent = put(store, text="p")
    left = put(store, text="1", config={"model": {"size": "4m", "depth": 2}, "lr": 1})
    right = put(
        store, text="2", config={"model": {"size": "10m", "depth": 2}, "new": None},
        parents={"corpus": parent.id},
    )  # fmt: skip
    found = diff(left, right)
    assert found["config"] == {"model.size": ("4m", "10m"), "lr": (1, None), "new": (None, None)}
    assert found["parents"] == {"corpus": (None, parent.id)}
    assert list(found["files"]) == ["a.txt"]
    assert not any(diff(left, left).values())


def test_the_environment_picks_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNG_STORE", raising=False)
    assert Store().root == tmp_path / ".rung"
    monkeypatch.setenv("RUNG_STORE", str(tmp_path / "else"))
    assert Store().root == tmp_path / "else"
    assert Store(tmp_path / "given").root == tmp_path / "given"
    assert not list(tmp_path.iterdir())  # looking creates nothing
