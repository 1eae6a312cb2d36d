"""The report with hostile prompts, rewards and models, in a real browser: nothing of theirs is run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dragontune.evaluation.evaluate import Evaluation, evaluate
from dragontune.sampling import Sampler
from fakes import Centre, Loudness, Pitch, Tones

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
DONE = "document.documentElement.setAttribute('data-pwned','1')"
"""What each payload tries to do."""
PAYLOADS = [
    f"<script>{DONE}</script>",
    f"</script><script>{DONE}</script>",
    f"<img src=x onerror={DONE}>",
    f'<img src=x onerror="{DONE}">',
    f"'><img src=x onerror={DONE}>",
    f'"><svg onload={DONE}>',
    f"<svg><script>{DONE}</script></svg>",
    f"<svg/onload={DONE}>",
    f"<body onload={DONE}>",
    f"<iframe srcdoc='<script>parent.{DONE}</script>'>",
    f'<iframe src="javascript:parent.{DONE}">',
    f'<a href="javascript:{DONE}" autofocus onfocus={DONE}>x</a>',
    f"<input autofocus onfocus={DONE}>",
    f"<details open ontoggle={DONE}>x</details>",
    f"<video><source onerror={DONE}></video>",
    f"<audio src=x onerror={DONE}></audio>",
    f'<object data="data:text/html,<script>{DONE}</script>">',
    f'<embed src="javascript:{DONE}">',
    f"<math><mtext></title><img src=x onerror={DONE}>",
    f"</title><script>{DONE}</script>",
    f"</style><script>{DONE}</script>",
    f"<style>@import 'data:text/css,*{{}}';</style><script>{DONE}</script>",
    f"--><script>{DONE}</script>",
    f"<!--><script>{DONE}</script>",
    f"]]><script>{DONE}</script>",
    f"{{{{ ''.__class__ }}}}<script>{DONE}</script>",
    f"{{% raw %}}<script>{DONE}</script>",
    f'" onmouseover="{DONE}" autofocus onfocus="{DONE}',
    f"' onmouseover='{DONE}' autofocus onfocus='{DONE}",
    f"x` onload=`{DONE}`",
    f"&lt;script&gt;{DONE}&lt;/script&gt;",
    f"&#60;script&#62;{DONE}&#60;/script&#62;",
    f"\u003cscript\u003e{DONE}\u003c/script\u003e",
    f"<scr\x00ipt>{DONE}</scr\x00ipt>",
    f"<ScRiPt/x>{DONE}</sCrIpT>",
    f"<base href='javascript:{DONE}//'>",
    f'<form action="javascript:{DONE}"><button autofocus>',
    f'<meta http-equiv=refresh content="0;url=javascript:{DONE}">',
    f"<link rel=stylesheet href=x onerror={DONE}>",
    f"<marquee onstart={DONE}>x</marquee>",
    f"+ADw-script+AD4-{DONE}+ADw-/script+AD4-",
    f"\u202e<script>{DONE}</script>",
    f"</textarea><script>{DONE}</script>",
    f"</noscript><img src=x onerror={DONE}>",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real report, with the payloads as prompts, names of rewards, the model's name, and the recipe."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "p.txt").write_text("\n".join(PAYLOADS))
    rewards = {PAYLOADS[0]: Pitch(), "".join(PAYLOADS[:20]): Pitch(-1.0), "".join(PAYLOADS[20:]): Loudness()}
    evaluation = Evaluation(str(folder / "p.txt"), len(PAYLOADS), 4, 4, (0.0, 1.0), rewards, 6, len(PAYLOADS))
    generator = Tones(shift=0.4)
    generator.name = "".join(PAYLOADS)
    evaluate(generator, evaluation, Centre(1.0), Sampler(steps=2), 0, folder, recipe="\n".join(PAYLOADS))
    return (folder / "index.html").read_text()


def dom(html: str, folder: Path) -> str:
    """What a browser makes of a page."""
    (folder / "page.html").write_text(html)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=3000",
    ]
    command = [str(BROWSER), *options, "--dump-dom", (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def test_there_are_enough():
    assert len(set(PAYLOADS)) >= 40


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_nothing_of_theirs_runs_and_the_players_do(page: str, tmp_path: Path):
    found = dom(page, tmp_path)
    assert "data-pwned" not in found.partition("<html")[2].partition(">")[0]
    assert len(re.findall(r'class="side \w+ playable"', found)) == 2 * len(PAYLOADS)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_policy_holds_where_escaping_would_fail(page: str, tmp_path: Path):
    bare = page.replace("<main>", "<main>" + PAYLOADS[0] + PAYLOADS[2] + PAYLOADS[5], 1)
    assert bare != page
    found = dom(bare, tmp_path)
    assert "data-pwned" not in found.partition("<html")[2].partition(">")[0]
    assert re.search(r'class="side \w+ playable"', found)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_this_test_would_see_it(page: str, tmp_path: Path):
    bare = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page).replace(
        "<main>", "<main>" + PAYLOADS[2], 1
    )
    assert "data-pwned" in dom(bare, tmp_path).partition("<html")[2].partition(">")[0]
