"""Says how many requests a run of Schemathesis really made, from its NDJSON report; fails when there are few.

Arguments: the fewest answers that each operation has to have had, then `served` when `status` and `enc_keys` also
have to have succeeded: a network that serves nothing proves little.
"""

import collections
import json
import sys

fewest = int(sys.argv[1])
answers = collections.defaultdict(collections.Counter)
for line in sys.stdin:
    scenario = json.loads(line).get("ScenarioFinished")
    if scenario is None:
        continue
    recorder = scenario["recorder"]
    for name, interaction in recorder.get("interactions", {}).items():
        response = interaction.get("response")
        case = recorder["cases"][name]["value"]
        operation = f'{case["method"]} {case["path"]}'
        if response is not None:
            answers[operation][response["status_code"]] += 1
for operation, statuses in sorted(answers.items()):
    print(f"{operation}: {sum(statuses.values())} answers {dict(sorted(statuses.items()))}")
STATUS = "/api/v1/keys/{slave_SAE_ID}/status"
ENC, DEC = STATUS.replace("status", "enc_keys"), "/api/v1/keys/{master_SAE_ID}/dec_keys"
for operation in [f"GET {STATUS}", f"GET {ENC}", f"POST {ENC}", f"GET {DEC}", f"POST {DEC}"]:
    made = sum(answers[operation].values())
    if made < fewest:
        sys.exit(f"{operation}: {made} requests were made, fewer than {fewest}")
    if "served" in sys.argv and "dec_keys" not in operation and not answers[operation][200]:
        sys.exit(f"{operation}: no request was served")
