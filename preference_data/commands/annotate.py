"""The command `make-preferences annotate`: the pairs to be judged, handed to the page or to the endpoint."""

from portraitkit.errors import DataError
from preference_data.commands.annotate_config import AnnotateConfig
from preference_data.pair_set import read_pairs
from preference_data.schema import Pair


def annotate(config: AnnotateConfig) -> int:
    """Run; returns the exit code.

    Raises:
        UserError: no pairs to judge, an address that cannot be listened on, an endpoint that does not answer.
    """
    pairs = chosen_pairs(read_pairs(config.data), config)
    if config.web:
        from preference_data.web.serve import serve_page

        return serve_page(config, pairs)
    from preference_data.commands.ask_models import ask_models

    return ask_models(config, pairs)


def chosen_pairs(pairs: list[Pair], config: AnnotateConfig) -> list[Pair]:
    """The pairs that are to be judged.

    Raises:
        DataError: there are none.
    """
    chosen = [pair for pair in pairs if config.pairs == "all" or pair.verdicts is None][: config.limit]
    if not chosen:
        raise DataError(f"{config.data}: all {len(pairs)} pairs have verdicts already; --pairs all takes them too")
    return chosen
