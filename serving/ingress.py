"""The front door: the OpenAI routes of Ray Serve LLM that a policy needs, and no others, beside `/health`."""

import asyncio
from typing import Any

from fastapi import HTTPException
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

HEALTH_TIMEOUT_S = 5.0


class PolicyIngress(OpenAiIngress):
    """Ray's ingress with a health check that asks an engine, not only this process."""

    def __init__(self, llm_deployments: dict[str, DeploymentHandle], model_cards: dict[str, Any]) -> None:
        super().__init__(llm_deployments, model_cards)
        self._engines = tuple(llm_deployments.values())

    async def health(self) -> dict[str, str]:
        """200 where every served model has an engine that can answer, 503 otherwise."""
        checks = [engine.check_health.remote() for engine in self._engines]
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                for check in checks:
                    await check
        except (TimeoutError, RayError, RayServeException) as error:
            raise HTTPException(status_code=503, detail="no engine answers") from error
        return {"status": "ok"}


def build_ingress_class() -> type:
    """The deployment class. Routes that are not listed here do not exist."""
    return make_fastapi_ingress(
        PolicyIngress,
        endpoint_map={
            "health": lambda app: app.get("/health"),
            "models": lambda app: app.get("/v1/models"),
            "model_data": lambda app: app.get("/v1/models/{model}"),
            "completions": lambda app: app.post("/v1/completions"),
            "chat": lambda app: app.post("/v1/chat/completions"),
        },
    )
