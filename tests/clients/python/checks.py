"""What the checks of every Python client share: the demo's sites and certificates, and how a check is told."""

import base64
import json
import sys
import traceback

# Sentences of ETSI GS QKD 014, clauses 6.2 and 6.4, to the letter.
KEYS_NOT_FOUND = "one or more keys specified are not found on KME"
NOT_A_MULTIPLE = "size shall be a multiple of 8"
EXTENSION_UNSUPPORTED = "not all extension_mandatory parameters are supported"
# What this KME says of a slave that nobody knows.
UNKNOWN_SLAVE = "the SAE or KME in the path is unknown"


class Demo:
    """What demo.json says."""

    def __init__(self, file):
        with open(file, encoding="utf-8") as text:
            read = json.load(text)
        self.ca = read["ca"]
        self._saes = {sae["id"]: (site["sae_url"], sae) for site in read["sites"] for sae in site["saes"]}

    def sae(self, name):
        """The URL of the site that an SAE lives at, its certificate and its key."""
        url, sae = self._saes[name]
        return url, sae["cert"], sae["key"]


class Checks:
    """Tells and counts the checks of one client; a check fails by raising."""

    def __init__(self, client):
        self.client = client
        self.failed = 0

    def check(self, rule, check):
        try:
            check()
            result = "ok"
        except Exception:  # whatever it is, the other checks still run
            traceback.print_exc()
            self.failed += 1
            result = "FAIL"
        print(f"{result:<5} {self.client}: {rule}", flush=True)

    def end(self):
        sys.exit(1 if self.failed else 0)


def expect(found, wanted):
    """Not for keys, which it would print."""
    if found != wanted:
        raise AssertionError(f"found {found!r}, wanted {wanted!r}")


def expect_same_keys(made, got, number, bits):
    """Two lists of (ID, key in base64)."""
    expect([key_id for key_id, _ in got], [key_id for key_id, _ in made])
    expect(len(made), number)
    expect([8 * len(base64.b64decode(key, validate=True)) for _, key in made], [bits] * number)
    if made != got:
        raise AssertionError("the keys of the two sites differ")
