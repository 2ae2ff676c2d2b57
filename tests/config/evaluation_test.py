"""Where held-out text is scored."""

import pytest

from yxanul.config.spec import EvaluationSpec


def test_shares_double_up_to_the_regular_ones():
  assert EvaluationSpec(every_share=0.25).shares() == [0.25, 0.5, 0.75, 1.0]
  assert EvaluationSpec(every_share=0.5, first_share=0.1).shares() == [0.1, 0.2, 0.4, 0.5, 1.0]
  assert EvaluationSpec(every_share=0.05, first_share=0.05).shares() == EvaluationSpec(every_share=0.05).shares()


@pytest.mark.parametrize(('field', 'value'), [('every_share', 0.0), ('every_share', 1e-9), ('first_share', -0.1)])
def test_a_share_is_a_share(field, value):
  with pytest.raises(ValueError, match=f'evaluation.{field}: got .*, wants a share between'):
    EvaluationSpec(**{field: value})
