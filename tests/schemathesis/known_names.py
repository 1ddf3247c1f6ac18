"""Narrows a description of the API to what exists in a demo of two sites.

Which SAEs there are, and what the pools can promise, is no matter of form, so the description does not say it.
With it, every request of the right form has to be served.
"""

import json
import sys

api = json.load(sys.stdin)
schemas = api["components"]["schemas"]


def narrow(schema, **keywords):
    assert isinstance(schema, dict) and not (schema.keys() & keywords.keys()), (schema, keywords)
    schema.update(keywords)


peers = 0
for path in api["paths"].values():
    for operation in path.values():
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                narrow(parameter["schema"], enum=["site-b", "bob"])
                peers += 1
assert peers == 5, peers
request = schemas["KeyRequest"]["properties"]
# Neither the caller, alice, nor bob of the path.
narrow(request["additional_slave_SAE_IDs"]["items"], enum=["carol", "dave"])
# Three pool servers; keys live for an hour, by tests/schemathesis.sh.
grade = schemas["SourceGradeDemand"]["properties"]
narrow(grade["entropy_source"], enum=["os", None])
narrow(grade["min_pools"], maximum=3)
narrow(schemas["ExpiryDemand"]["properties"]["min_seconds"], maximum=3600)
json.dump(api, sys.stdout)
