"""Names of the adapters on one base, which are those of their folders too."""

ADAPTER = "policy"
REFERENCE = "reference"
CRITIC = "critic"
