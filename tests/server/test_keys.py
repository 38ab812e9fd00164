"""API keys: nothing secret at rest, scopes, revocation in a running server, shares."""

from __future__ import annotations

import asyncio
import hmac
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import httpx
import openai
import pytest
from starlette.types import Message

from draftsmith.server import keys as keys_module
from draftsmith.server.admission import Admission, Load, Slot
from draftsmith.server.errors import ApiError
from draftsmith.server.home import Home
from draftsmith.server.keys import ApiKey, KeyStore, Scope, settings_key
from draftsmith.server.openai.disconnect import unless_gone
from tests.cli.commands import draftsmith, one_sentence
from tests.server.conftest import Models
from tests.server.processes import wait_until
from tests.server.stub import answering, completion, serving, strict_client


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(Home(tmp_path).ensure().keys)


def test_only_hashes_are_kept(store: KeyStore) -> None:
    secret = store.create("app", ["infer"])
    assert len(secret) > 40
    text = store.file.read_text()
    assert secret not in text
    assert secret.removeprefix("sk-draftsmith-") not in text
    assert stat.S_IMODE(store.file.stat().st_mode) == 0o600
    assert store.create("other", ["infer"]) != secret


def test_find(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "_FRESH_S", 0.0)
    assert not store.required
    secrets = {name: store.create(name, ["infer"]) for name in ("a", "b", "c")}
    assert store.required
    for name, secret in secrets.items():
        found = store.find(secret)
        assert found is not None
        assert found.name == name
        assert store.find(secret[:-1]) is None
    assert store.find("") is None
    store.revoke("b")
    assert store.find(secrets["b"]) is None
    assert store.find(secrets["c"]) is not None
    for name in ("a", "c"):
        store.revoke(name)
    assert store.required, "without keys nobody may enter, rather than everybody"
    store.file.unlink()
    assert store.required


def test_every_stored_key_is_compared(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time of an answer would tell which place the right key has."""
    first = store.create("a", ["infer"])
    for name in ("b", "c"):
        store.create(name, ["infer"])
    compared = []
    compare = hmac.compare_digest

    def counting(one: str, other: str) -> bool:
        compared.append(other)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    fresh = KeyStore(store.file, [settings_key("a-key-of-some-length")])
    assert fresh.find(first) is not None
    assert len(set(compared)) == 4


def test_wrong_keys(store: KeyStore) -> None:
    store.create("app", ["infer"])
    with pytest.raises(ValueError, match="a key 'app' already"):
        store.create("app", ["admin"])
    with pytest.raises(ValueError, match="The key's name is wrong"):
        store.create("../app", ["infer"])
    with pytest.raises(ValueError, match="The key's scopes is wrong"):
        store.create("b", [])
    with pytest.raises(ValueError, match="no key 'nobody'"):
        store.revoke("nobody")
    store.file.write_text('{"keys": [{"name": "x"}]}')
    with pytest.raises(ValueError, match="is damaged"):
        KeyStore(store.file)


def test_many_writers_lose_nothing(store: KeyStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: KeyStore(store.file).create(f"k{n}", ["infer"]), range(16)))
    assert len(store.all()) == 16


def test_commands(tmp_path: Path) -> None:
    made = draftsmith(tmp_path, "keys", "create", "app", "--max-concurrent", "3")
    secret = made.stdout.strip()
    found = KeyStore(Home(tmp_path).keys).find(secret)
    assert found is not None
    assert (found.scopes, found.max_concurrent) == (("infer",), 3)
    listed = draftsmith(tmp_path, "keys", "list").stdout
    assert "app" in listed
    assert secret not in listed
    both = draftsmith(tmp_path, "keys", "create", "b", "--scope", "infer", "--scope", "train")
    key = KeyStore(Home(tmp_path).keys).find(both.stdout.strip())
    assert key is not None
    assert [key.may(scope) for scope in get_args(Scope)] == [True, True, False]
    assert draftsmith(tmp_path, "keys", "revoke", "app").returncode == 0
    assert "no key 'app'" in one_sentence(draftsmith(tmp_path, "keys", "revoke", "app"))


def test_scopes_and_revocation_in_a_running_server(models: Models, store: KeyStore) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=completion())

    infer, admin = store.create("app", ["infer"]), store.create("boss", ["admin"])
    home = store.file.parent
    with serving(home, models.target, answering(answer)) as url:
        app = strict_client(url, api_key=infer)
        assert app.completions.create(model="target", prompt="a").choices
        assert app.models.list().data
        with pytest.raises(openai.PermissionDeniedError) as refused:
            app.get("../metrics", cast_to=object)
        assert refused.value.code == "insufficient_scope"
        assert refused.value.type == "permission_error"
        assert refused.value.request_id
        metrics = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {admin}"})
        assert metrics.status_code == 200
        for path in ("/v1/deployments", "/v1/deployments/target/events"):
            denied = httpx.get(url + path, headers={"authorization": f"Bearer {infer}"})
            assert denied.status_code == 403
        with pytest.raises(openai.AuthenticationError) as unknown:
            strict_client(url, api_key="sk-wrong").models.list()
        assert unknown.value.code == "invalid_api_key"

        store.revoke("app")

        def locked_out() -> bool:
            try:
                app.models.list()
            except openai.AuthenticationError:
                return True
            return False

        wait_until(locked_out, 3, "the revoked key is refused")


KEY = ApiKey(name="app", sha256="0" * 64, scopes=("infer",), max_concurrent=2)


def test_a_key_has_its_share() -> None:
    async def check() -> None:
        admission = Admission(limit=10, queue=10, max_wait_s=1)
        slots = [await admission.enter(KEY) for _ in range(2)]
        with pytest.raises(ApiError) as refused:
            await admission.enter(KEY)
        assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.value.headers["retry-after"]) <= 120
        await admission.enter(None)  # others are not concerned
        slots[0].leave()
        slots[0].leave()  # a second time gives no second place
        await admission.enter(KEY)
        with pytest.raises(ApiError):
            await admission.enter(KEY)

    asyncio.run(check())


def test_the_queue_is_bounded_and_fair() -> None:
    async def check() -> None:
        admission = Admission(limit=1, queue=2, max_wait_s=0.2)
        inside = await admission.enter(None)
        order: list[int] = []

        async def come(number: int) -> None:
            slot = await admission.enter(None)
            order.append(number)
            slot.leave()

        waiting = [asyncio.create_task(come(number)) for number in range(2)]
        await asyncio.sleep(0.01)
        assert admission.waiting == 2
        with pytest.raises(ApiError) as full:
            await admission.enter(None)
        assert (full.value.status, full.value.code) == (503, "overloaded")
        inside.leave()
        await asyncio.gather(*waiting)
        assert order == [0, 1]

        # Waiting ends, by time or by the client, and leaves nothing counted.
        inside = await admission.enter(None)
        with pytest.raises(ApiError, match="no place in"):
            await admission.enter(KEY)
        gone = asyncio.create_task(admission.enter(KEY))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.wait({gone})
        assert admission.waiting == 0
        inside.leave()
        assert [await admission.enter(None) for _ in range(1)]
        assert not admission._of_key

    asyncio.run(check())


def test_who_leaves_in_the_moment_of_entering_holds_no_place() -> None:
    """A place that was given in the same turn of the loop goes back, whoever had waited for it."""

    async def check() -> None:
        admission = Admission(limit=1, queue=4, max_wait_s=5)
        for turns in range(4):
            inside, load = await admission.enter(None), Load()
            leave = asyncio.Event()

            async def receive(leave: asyncio.Event = leave) -> Message:
                await leave.wait()
                return {"type": "http.disconnect"}

            waits = asyncio.create_task(
                unless_gone(receive, admission.enter(KEY, load), unused=Slot.leave)
            )
            await asyncio.sleep(0.01)
            inside.leave()  # it is the waiting one's turn
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns % 2:
                waits.cancel()
            else:
                leave.set()
            (came,) = await asyncio.gather(waits, return_exceptions=True)
            if isinstance(came, Slot):
                came.leave()
            await asyncio.sleep(0.01)
            assert (admission.inside, admission.waiting, load.in_flight) == (0, 0, 0), turns
            assert not admission._of_key

    asyncio.run(check())
