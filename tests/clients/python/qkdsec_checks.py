"""qkdsec (PyPI) against a running demo: its client, and the command `qkdsec doctor`, its conformance probe."""

import json
import subprocess
import sys
from pathlib import Path

from checks import KEYS_NOT_FOUND, NOT_A_MULTIPLE, Checks, Demo, expect
from qkdsec import __version__
from qkdsec.client import ETSI014Client
from qkdsec.client.errors import KMEHTTPError

demo = Demo(sys.argv[1])

# What the doctor is to find. It warns unless an unknown key ID is 404; the standard's table of status codes has no
# 404, and clause 6.4 asks for 400: its defect.
FINDINGS = {
    "reachability": "pass",
    "status_fields": "pass",
    "enc_keys_get": "pass",
    "enc_keys_post": "pass",
    "enc_keys_caps": "pass",
    "extensions_accepted": "pass",
    # It asks with the master's certificate, which only a KME with master refetch allows.
    "dec_keys_roundtrip": "pass",
    "error_contract_404": "warn",
    "error_contract_400": "pass",
    "latency": "pass",
}


def client(sae):
    url, cert, key = demo.sae(sae)
    return ETSI014Client(url, client_cert=(cert, key), verify=demo.ca)


def both_get(number, size, **request):
    made = client("alice").get_enc_keys("bob", number=number, size=size, **request)
    expect([key.size_bits for key in made], [size] * number)
    got = client("bob").get_dec_keys("alice", key_ids=[key.key_id for key in made])
    if [(key.key_id, key.key) for key in made] != [(key.key_id, key.key) for key in got]:
        raise AssertionError("the keys of the two sites differ")
    return made


def refused(call, status, message):
    try:
        call()
    except KMEHTTPError as error:
        expect((error.status_code, error.message), (status, message))
    else:
        raise AssertionError("not refused")


def extension():
    made = both_get(1, 256, extension_optional=[{"dqkd_expiry": {}}])
    expect(list(made[0].key_extension), ["dqkd_expiry"])


def second_retrieval():
    ids = [key.key_id for key in both_get(1, 256)]
    refused(lambda: client("bob").get_dec_keys("alice", key_ids=ids), 400, KEYS_NOT_FOUND)


def doctor():
    url, cert, key = demo.sae("alice")
    program = Path(sys.executable).parent / "qkdsec"
    command = [program, "doctor", url, "--slave-sae-id", "bob", "--cert", cert, "--key", key, "--ca-cert", demo.ca]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, timeout=120, check=False)
    expect((done.returncode, done.stderr), (0, ""))
    results = json.loads(done.stdout)["results"]
    expect({result["name"]: result["status"] for result in results}, FINDINGS)
    unknown_key = next(result for result in results if result["name"] == "error_contract_404")
    expect(unknown_key["details"], {"http_status": 400})


checks = Checks(f"qkdsec {__version__}")
checks.check("GET: three keys of 512 bits are the same at both sites", lambda: both_get(3, 512))
checks.check("POST: the same", lambda: both_get(3, 512, method="POST"))
checks.check("the expiry asked for as an extension comes back", extension)
checks.check("a second retrieval is 400 with the standard's sentence", second_retrieval)
checks.check(
    "a size that is no multiple of 8 is 400 with the standard's sentence",
    lambda: refused(lambda: client("alice").get_enc_keys("bob", size=257), 400, NOT_A_MULTIPLE),
)
checks.check("doctor: nine probes pass; the tenth wants 404 for an unknown key (its defect)", doctor)
checks.end()
