"""Answers about the model, in each protocol: lists of models, sizes, capabilities, versions."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sol_rt import __version__
from sol_rt.bundle.bits import bits_tag
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.generate.model import SolModel
from sol_rt.serve.ollama_api import LATEST, base_name
from sol_rt.serve.openapi import openapi
from sol_rt.serve.protocol import body_of
from sol_rt.serve.request import FieldError, split_name
from sol_rt.serve.response_templates import fields_of
from sol_rt.serve.steps import curves

_OLLAMA_VERSION = "0.13.0"
"""The version whose protocol `/api` follows: some programs refuse one that is older than they need."""


class About:
    """Facts of a served model."""

    def __init__(self, model: SolModel, name: str, sessions: int) -> None:
        self._model, self._name, self._sessions = model, name, sessions
        written = (model.bundle.path / CONFIG_NAME).stat().st_mtime
        self._modified = datetime.fromtimestamp(written, timezone.utc).isoformat()

    def routes(self) -> list[Route]:
        """The end points."""
        return [
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one),
            Route("/api/tags", self._tags),
            Route("/api/ps", self._ps),
            Route("/api/show", self._show, methods=["POST"]),
            Route("/api/version", self._version),
            Route("/props", self._props),
            Route("/openapi.json", self._openapi),
        ]

    async def _models(self, request: Request) -> Response:
        bounds = {"has_more": False, "first_id": self._name, "last_id": self._name}  # Anthropic's
        return JSONResponse({"object": "list", "data": [self._card()], **bounds})

    async def _one(self, request: Request) -> Response:
        if request.path_params["name"] != self._name:
            raise HTTPException(404)
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        """The model's entry in the words of OpenAI and of Anthropic."""
        openai = {"id": self._name, "object": "model", "created": 0, "owned_by": "sol_rt"}
        anthropic = {"type": "model", "display_name": self._name, "created_at": "1970-01-01T00:00:00Z"}
        ours = {"max_context": self._context, "cost_model": self._model.cost.name, "losses": curves(self._model)}
        return openai | anthropic | ours

    async def _tags(self, request: Request) -> Response:
        return JSONResponse({"models": [self._entry() | {"modified_at": self._modified}]})

    async def _ps(self, request: Request) -> Response:
        until = (datetime.now(timezone.utc) + timedelta(days=365)).isoformat()  # it stays loaded
        on_gpu = self._bytes if self._model.provider.gpu is not None else 0
        more = {"expires_at": until, "size_vram": on_gpu, "context_length": self._context}
        return JSONResponse({"models": [self._entry() | more]})

    async def _show(self, request: Request) -> Response:
        body = await body_of(request)
        name = body.get("model") or body.get("name") or ""
        if not isinstance(name, str):
            raise FieldError("model", "expected a name")
        split_name(base_name(name, self._name), self._name)
        model = self._model.bundle.config.model
        sizes = {
            "context_length": self._context,
            "embedding_length": model.hidden_size,
            "block_count": model.num_layers,
            "feed_forward_length": model.intermediate_size,
            "attention.head_count": model.num_heads,
            "attention.head_count_kv": model.num_kv_heads,
            "vocab_size": model.vocab_size,
        }
        general = {
            "general.architecture": self._family,
            "general.basename": model.name,
            "general.license": model.license,
            "general.parameter_count": self._parameters,
        }
        return JSONResponse(
            {
                "modelfile": f"FROM {self._name}\n",
                "parameters": "",
                "template": await asyncio.to_thread(lambda: self._model.chat_template_source),
                "license": model.license,
                "modified_at": self._modified,
                "details": self._details(),
                "model_info": general | {f"{self._family}.{key}": value for key, value in sizes.items()},
                "capabilities": await asyncio.to_thread(lambda: self._capabilities),
            }
        )

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": _OLLAMA_VERSION, "sol_rt": __version__})

    async def _props(self, request: Request) -> Response:
        return JSONResponse(
            {
                "default_generation_settings": {"n_ctx": self._context},
                "total_slots": self._sessions,
                "model_alias": self._name,
                "model_path": self._model.bundle.path.name,
                "chat_template": await asyncio.to_thread(lambda: self._model.chat_template_source),
                "modalities": {"vision": False, "audio": False},
                "build_info": f"sol_rt {__version__}",
            }
        )

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi(self._name))

    def _entry(self) -> dict[str, Any]:
        """The model in Ollama's lists, where every name has a tag."""
        name = self._name if ":" in self._name else self._name + LATEST
        digest = self._model.bundle.identity
        return {"name": name, "model": name, "size": self._bytes, "digest": digest, "details": self._details()}

    def _details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "sol_rt",
            "family": self._family,
            "families": [self._family],
            "parameter_size": _short(self._parameters),
            "quantization_level": bits_tag(self._model.bundle.config.dense.bits).upper(),
        }

    @property
    def _family(self) -> str:
        """The architecture in Ollama's way, as `llama` of `LlamaForCausalLM`."""
        return self._model.bundle.config.model.architecture.removesuffix("ForCausalLM").lower()

    @property
    def _context(self) -> int:
        return self._model.engine.max_context

    @property
    def _capabilities(self) -> list[str]:
        """In Ollama's words: programs offer tools where `tools` is among them."""
        names = {"tool": "tools", "reasoning": "thinking"}
        kinds = {field.kind for field in fields_of(self._model.chat_template_source)}
        return ["completion", *(name for kind, name in names.items() if kind in kinds)]

    @cached_property
    def _bytes(self) -> int:
        return sum(entry.bytes for entry in self._model.bundle.config.files.values())

    @cached_property
    def _parameters(self) -> int:
        """Weights of the matrices, without an LM head of its own."""
        model = self._model.bundle.config.model
        attention = 2 * model.head_dim * (model.num_heads + model.num_kv_heads)
        layer = model.hidden_size * (attention + 3 * model.intermediate_size)
        return model.vocab_size * model.hidden_size + model.num_layers * layer


def _short(parameters: int) -> str:
    """A number of parameters as in `1.5B` or `135M`."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
