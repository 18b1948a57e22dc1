"""HTML templates of reports: every value is escaped, and a missing value is an error."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from humpback_ray.stages.progress import duration


def template(path: Path) -> Template:
    """Return a template; it may include files of its own folder, and the report's page.css."""
    environment = Environment(
        loader=FileSystemLoader([path.parent, Path(__file__).parent]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "count": lambda value: "–" if value is None else f"{value:,}",
        "share": lambda value: "–" if value is None else f"{value:.1%}",
        "decimals": lambda value, digits=2: "–" if value is None else f"{value:,.{digits}f}",
        "rate": lambda value: "–" if value is None else f"{value:.3g}",
        "parameters": parameters,
        "gigabytes": lambda value: "–" if value is None else f"{value / 1e9:.2f} GB",
        "moments": lambda pair: "–" if pair[0] is None else f"{pair[0]:,.0f} ± {pair[1] or 0:,.0f}",
        "duration": lambda value: f"{value:.1f} s" if value < 60 else duration(value),
    }
    return environment.get_template(path.name)


def parameters(value: int | None) -> str:
    """Format a number of parameters for people: 0.41 M, 6.7 B."""
    if value is None:
        return "–"
    return f"{value / 1e9:.3g} B" if value >= 1e9 else f"{value / 1e6:.3g} M"
