"""A registered draft, sent to where other machines look for models: a hub, or MLflow's registry."""

from __future__ import annotations

import importlib.util

from draftsmith.server.registry import Version


def push_to_hub(version: Version, repository: str, *, private: bool) -> str:
    """Upload the folder as one commit and return its address.

    The repository is made if it is not there. Address and token are those of Hugging Face's own
    tools: `HF_ENDPOINT`, `HF_TOKEN` or `hf auth login`.

    Raises:
        ValueError: the name is none, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    # Which HTTP client the library has changes with its version; its errors are among the bases.
    unreachable: tuple[type[Exception], ...] = (
        OfflineModeIsEnabled,
        *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
    )
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=version.folder, commit_message=f"Add {version.id}"
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        raise ValueError(f"{repository}: {_sentence(error)}") from error
    except unreachable as error:
        raise ValueError(f"No hub answers at {hub.endpoint}: {_sentence(error)}") from error
    return str(commit.commit_url)


def log_to_mlflow(version: Version, name: str) -> str:
    """Log the folder in a run, make it the next version of the model `name`; return its address.

    The tracking server is `MLFLOW_TRACKING_URI`'s, as for all of MLflow's tools.

    Raises:
        ValueError: MLflow is not installed, or its server cannot be reached or refuses.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError("MLflow is not installed: pip install 'draftsmith[mlflow]'.")
    import mlflow
    from mlflow.exceptions import MlflowException

    tags = {"draftsmith_id": version.id, "draftsmith_target": version.manifest.target.name}
    try:
        client = mlflow.MlflowClient()
        mlflow.set_experiment("draftsmith")
        with mlflow.start_run(run_name=version.id, tags=tags) as run:
            mlflow.log_dict(version.manifest.model_dump(mode="json"), "manifest.json")
            mlflow.log_metrics(_numbers(version))
            mlflow.log_artifacts(str(version.folder), "draft")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/draft"
        made = client.create_model_version(name, source, run.info.run_id, tags=tags)
    except MlflowException as error:
        raise ValueError(f"MLflow: {_sentence(error)}") from error
    return f"models:/{name}/{made.version}"


def _sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _numbers(version: Version) -> dict[str, float]:
    found = version.manifest.evaluation.items()
    return {name: float(one) for name, one in found if isinstance(one, int | float)}
