"""Check of our files with KubeRay's schema: `python -m tests.cluster.deploy_schema CRD.yaml …`.

The CRDs are in KubeRay's repository, under helm-chart/kuberay-operator/crds; no copy is kept here.
The API server silently drops a key that a CRD does not know. So a misspelt key must be found
before: every object of the schema is closed here. The exit status is 1 on errors.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

DEPLOY = Path(__file__).parents[2] / "cluster" / "deploy"


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def closed(schema: Any) -> Any:
    """Return the same schema, which refuses unknown keys."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(entry) for name, entry in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_ended:
        result.setdefault("additionalProperties", False)
    return result


def errors(crd: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    """Yield the errors of `document` under the version of `crd` that it names."""
    version = document["apiVersion"].partition("/")[2]
    [found] = [entry for entry in crd["spec"]["versions"] if entry["name"] == version]
    schema = closed(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # a CRD leaves it to the API server
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def main(arguments: list[str]) -> int:
    """Check every document of cluster/deploy with its CRD."""
    crds = [crd for name in arguments for crd in documents(Path(name))]
    num_checked = num_wrong = 0
    for path in sorted(DEPLOY.glob("kuberay-*.yaml")):
        for document in documents(path):
            for crd in crds:
                if crd["spec"]["names"]["kind"] == document["kind"]:
                    num_checked += 1
                    for error in errors(crd, document):
                        num_wrong += 1
                        print(f"{path.name} {document['kind']}: {error}")
    print(f"{num_checked} documents checked, {num_wrong} errors")
    return 1 if num_wrong or not num_checked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
