"""The instruction template of the documents' `GeneralInstructionHandler`, for tokenizers without a chat template.

    <s>
    Below is an instruction that describes a task, ...
    ### Instruction:
    {question}
    ### Response:
    {answer}</s>

Source: ModelLink (MindSpeed-LLM), `AlpacaTemplate`. As there, a question and its input are two lines of one turn; here
every answer is ended, not only the last, and directly, without a line end before.
"""

from __future__ import annotations

from pathlib import Path

from tandem.errors import ModelFolderError
from tandem.text.folder import TokenizerFolder
from tandem.text.tokenizer import Tokenizer

SYSTEM = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request. "
    "Please note that you need to think through your response logically and step by step."
)

SOURCE = (
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set said = '" + SYSTEM + "' %}{% set turns = messages %}{% endif %}"
    "{{ '\\n' + said }}"
    "{% for turn in turns %}"
    "{% if turn['role'] == 'user' %}{{ '\\n### Instruction:\\n' + turn['content'] }}"
    "{% elif turn['role'] == 'assistant' %}{{ '\\n### Response:\\n' + turn['content'] + eos_token }}"
    "{% else %}{{ raise_exception('the alpaca template has no words for the role ' + turn['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n### Response:\\n' }}{% endif %}"
)


def alpaca_template(folder: Path, tokenizer: Tokenizer) -> str:
    """The template as Jinja text; it begins with the folder's first token where the tokenizer puts that before a text.

    Raises:
        ModelFolderError: The folder names no `eos_token`, without which no answer would end.
    """
    files = TokenizerFolder(folder)
    if tokenizer.id_of(files.spelling_of("eos_token")) is None:
        raise ModelFolderError(f"{folder}: names no eos_token, which ends an answer; add it to tokenizer_config.json")
    first = tokenizer.id_of(files.spelling_of("bos_token"))
    begins = first is not None and tokenizer.encode("a")[:1] == [first]
    return "{{ bos_token }}" * begins + SOURCE


def end_of_document(folder: Path, tokenizer: Tokenizer) -> int:
    """The id that ends a document: the `eos_token`, or `eos_token_id` where the folder spells none.

    Raises:
        ModelFolderError: The folder names neither.
    """
    files = TokenizerFolder(folder)
    spelled = tokenizer.id_of(files.spelling_of("eos_token"))
    end = files.end_id if spelled is None else spelled
    if end is None or not 0 <= end < tokenizer.vocab_size:
        raise ModelFolderError(f"{folder}: names no eos_token, which ends a document; add it to tokenizer_config.json")
    return end
