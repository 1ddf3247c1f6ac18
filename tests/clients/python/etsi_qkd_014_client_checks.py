"""The client etsi-qkd-014-client of nanoy42 (PyPI) against a running demo: HTTP/1.1 by requests."""

import sys

from checks import (
    EXTENSION_UNSUPPORTED,
    KEYS_NOT_FOUND,
    NOT_A_MULTIPLE,
    UNKNOWN_SLAVE,
    Checks,
    Demo,
    expect,
    expect_same_keys,
)
from etsi_qkd_014_client import QKD014Client, __version__

demo = Demo(sys.argv[1])


def client(sae):
    url, cert, key = demo.sae(sae)
    return QKD014Client(url.removeprefix("https://"), cert, key, demo.ca)


def granted(answer):
    code, data = answer
    if code != 200:
        raise AssertionError(f"{code}: {data}")
    return [(key.key_id, key.key) for key in data.keys]


def refused(answer, status, message):
    code, error = answer
    expect((code, getattr(error, "message", None)), (status, message))
    return error


def dec(sae, made):
    return client(sae).get_key_with_key_IDs("alice", [key_id for key_id, _ in made])


def both_get(keys, bits, **request):
    made = granted(client("alice").get_key("bob", **request))
    expect_same_keys(made, granted(dec("bob", made)), keys, bits)


def status():
    code, data = client("alice").get_status("bob")
    expect(code, 200)
    expect((data.source_kme_id, data.target_kme_id), ("site-a", "site-b"))
    expect((data.master_sae_id, data.slave_sae_id), ("alice", "bob"))
    expect((data.key_size, data.max_key_per_request), (256, 128))
    expect(data.stored_key_count <= data.max_key_count, True)


def multicast():
    made = granted(client("alice").get_key("bob", additional_slave_sae_ids=["carol", "erin"]))
    refused(dec("dave", made), 401, "Unauthorized")
    for sae in ["bob", "carol", "erin"]:
        expect_same_keys(made, granted(dec(sae, made)), 1, 256)


def unknown_mandatory_extension():
    answer = client("alice").get_key("bob", extension_mandatory=[{"abc_route_type": "direct"}])
    error = refused(answer, 400, EXTENSION_UNSUPPORTED)
    expect(error.details, [{"extension_mandatory_unsupported": [{"abc_route_type": None}]}])


def optional_extension():
    both_get(1, 256, extension_optional=[{"dqkd_expiry": {}}, {"abc_other": 1}])
    # Its defect: what a KME answers in key_extension never reaches the caller.
    code, data = client("alice").get_key("bob", extension_optional=[{"dqkd_expiry": {}}])
    expect((code, data.keys[0].key_extension), (200, None))


def extensions_of_key_ids():
    made = granted(client("alice").get_key("bob"))
    ids = [key_id for key_id, _ in made]
    got = client("bob").get_key_with_key_IDs("alice", ids, [{"abc_a": 1}], {"abc_b": [2]})
    expect_same_keys(made, granted(got), 1, 256)


def second_retrieval():
    made = granted(client("alice").get_key("bob"))
    granted(dec("bob", made))
    refused(dec("bob", made), 400, KEYS_NOT_FOUND)


def key_of_another():
    made = granted(client("alice").get_key("bob"))
    refused(dec("carol", made), 401, "Unauthorized")
    expect_same_keys(made, granted(dec("bob", made)), 1, 256)


checks = Checks(f"etsi-qkd-014-client {__version__}")
checks.check("status has every member and names both sites", status)
checks.check("GET: no argument gives one key of 256 bits, the same at both sites", lambda: both_get(1, 256))
checks.check("POST: three keys of 512 bits are the same", lambda: both_get(3, 512, number=3, size=512))
checks.check("number alone", lambda: both_get(2, 256, number=2))
checks.check("size alone", lambda: both_get(1, 1024, size=1024))
checks.check("multicast: slaves of two sites get the same key, the unnamed do not", multicast)
checks.check("an unknown mandatory extension is refused and named in details", unknown_mandatory_extension)
checks.check("optional extensions give a key; key_extension is dropped (its defect)", optional_extension)
checks.check("extensions of key IDs are accepted", extensions_of_key_ids)
checks.check("a second retrieval shows the standard's sentence", second_retrieval)
checks.check("another slave's key is 401 with JSON and stays", key_of_another)
checks.check(
    "a size that is no multiple of 8 shows the standard's sentence",
    lambda: refused(client("alice").get_key("bob", size=257), 400, NOT_A_MULTIPLE),
)
checks.check(
    "an unknown slave is refused",
    lambda: refused(client("alice").get_key("nobody"), 400, UNKNOWN_SLAVE),
)
checks.end()
