"""Text on its way in and out: tokens, chat templates, stop strings."""

from sol_rt.chat_template import ChatTemplate
from sol_rt.stop_strings import StopStrings
from sol_rt.tokenizer import TextStream, Tokenizer

__all__ = ["ChatTemplate", "StopStrings", "TextStream", "Tokenizer"]
