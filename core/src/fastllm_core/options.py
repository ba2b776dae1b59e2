"""The base of every plugin's options."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of one plugin: frozen, and an unknown key is an error.

    Give each field a default where one makes sense and a `description`, which `fastllm plugins show` prints.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
