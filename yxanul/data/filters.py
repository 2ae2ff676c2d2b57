"""Which documents are kept, by what their columns say: educational score, language, length.

A filter whose column a document lacks lets the document pass, so one configuration serves FineWeb-Edu and a folder of
plain text alike.
"""

from yxanul.config.spec import DataSpec
from yxanul.data.sources import Document

EMPTY, SCORE, LANGUAGE, SHORT = 'empty', 'score', 'language', 'short'


def rejects(document: Document, spec: DataSpec, is_held_out: bool = False) -> str | None:
  """Why `document` is not wanted, or None.

  `min_document_tokens` is judged here where the document brings a count of its own (`token_count_column`); where it does
  not, `prepare` judges it after tokenizing. A document of a validation source of its own is wanted as it is.
  """
  if not document.text or document.text.isspace():
    return EMPTY
  if is_held_out:
    return None
  if spec.min_score > 0 and document.score is not None and document.score < spec.min_score:
    return SCORE
  if spec.language and document.language is not None and document.language != spec.language:
    return LANGUAGE
  if document.token_count is not None and document.token_count < spec.min_document_tokens:
    return SHORT
  return None
