"""The page of clusters: its figures against slow references, and in a real headless Chromium."""

import json
import math
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from browser import chromium
from odc_lightning.callbacks.history import append, changes
from odc_lightning.report.cluster_figures import (
    Clustering,
    Past,
    Shown,
    label_counts,
    latest_events,
    purity_and_entropy,
)
from odc_lightning.report.clusters_page import split_prefix, sprite, thumbnail_of, write_page
from odc_lightning.report.history import HISTORY, History

EVENTS = np.array([[3, 0, 2, -1, 1], [3, 1, 2, 0, 9]], dtype=np.int32)


def made_up(folder, clusters, per_cluster=20, classes=12, epochs=6, seed=0):
    """Clusters of a few kinds: of one class, of two, of many; with a history."""
    rng = np.random.default_rng(seed)
    count = clusters * per_cluster
    labels = rng.permutation(np.concatenate([np.arange(clusters), rng.integers(clusters, size=count - clusters)]))
    kinds = labels % 3
    targets = np.choose(kinds, [labels % classes, labels % classes + rng.integers(2, size=count), np.arange(count)])
    targets = (targets % classes).astype(np.int64)
    previous, bank = None, rng.integers(clusters, size=count).astype(np.int32)
    for epoch in range(epochs):
        if epoch == epochs - 1:
            bank = labels.astype(np.int32)
        record = {
            **changes(bank, previous),
            "about": np.array([epoch, 5 * epoch, 3, 2, count]),
            "events": EVENTS if epoch == 1 else EVENTS[:0],
            "switched": 0.25,
            "renumbered": False,
        }
        append(folder / HISTORY, f"{epoch:05d}", record)
        previous, bank = bank, np.where(rng.random(count) < 0.2, rng.integers(clusters, size=count), bank)
        bank = bank.astype(np.int32)
    names = [f"/images/{'abcdefghijkl'[target]}/photo_{index}.jpg" for index, target in enumerate(targets)]
    kinds_of = [f"kind {letter}" for letter in "abcdefghijkl"]
    distances = rng.random(count).astype(np.float32)
    return Clustering("made up", names, labels, distances, targets, kinds_of, History(folder))


def picture(index, side=64):
    """Smooth, and another for each index."""
    small = np.random.default_rng(index).integers(256, size=(4, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR))


def two_beside(data, images_per_cluster=12):
    count = int((Shown.of(data, images_per_cluster).images_CS >= 0).sum())
    return np.column_stack([(np.arange(count) + step) % count for step in (1, 2)])


def script(path):
    function, _, text = path.read_text().partition("(")
    return function, json.loads(text.rstrip()[:-1])


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_against_loops(tmp_path):
    data = made_up(tmp_path, 9, per_cluster=7)
    shown = Shown.of(data, 4)
    sizes = Counter(data.labels_N.tolist())
    assert shown.clusters_C.tolist() == sorted(range(9), key=lambda c: (-sizes[c], c))
    counts = label_counts(data, shown)
    purity, entropy = purity_and_entropy(counts)
    for row, cluster in enumerate(shown.clusters_C):
        members = sorted(np.flatnonzero(data.labels_N == cluster), key=lambda i: data.distances_N[i])
        near, border = members[:2], members[2:][-2:]
        assert shown.images_CS[row].tolist() == ([*near, *border] + 4 * [-1])[:4]
        assert shown.near_C[row] == len(near)
        of = Counter(data.targets_N[members].tolist())
        assert {k: int(v) for k, v in enumerate(counts[[row]].toarray()[0]) if v} == dict(of)
        shares = [n / len(members) for n in of.values()]
        assert purity[row] == pytest.approx(max(shares))
        assert entropy[row] == pytest.approx(-sum(s * math.log2(s) for s in shares))
    past = Past.of(data.history, shown)
    flow = data.history.flow(4, 5).toarray()
    for cluster in range(9):
        expected = [[o, int(flow[cluster, o]), int(flow[o, cluster])] for o in range(9) if o != cluster]
        expected = [entry for entry in expected if entry[1] + entry[2]]
        assert past.partners(cluster) == sorted(expected, key=lambda e: (-e[1] - e[2], e[0]))[:6]
    assert past.ages_C.tolist() == [4 if cluster == 2 else 5 for cluster in shown.clusters_C]


def test_latest_events_of_a_cluster_are_those_it_gave_in_too():
    rng = np.random.default_rng(0)
    events = np.column_stack([np.arange(50), np.arange(50), np.ones(50), *rng.integers(6, size=(2, 50)), np.ones(50)])
    events = events.astype(np.int64)
    events[events[:, 3] == events[:, 4], 4] = -1
    clusters = np.array([4, 0, 5])
    for cluster, part in zip(clusters, latest_events(events, clusters, most=5), strict=True):
        slow = [event.tolist() for event in events if cluster in (event[3], event[4])]
        assert part.tolist() == slow[-5:]


def test_without_labels_history_and_readable_images(tmp_path):
    labels = np.array([0, 0, 3, 3, 3])
    data = Clustering("bare", [f"x/{i}" for i in range(5)], labels, np.full(5, np.nan))
    write_page(tmp_path, data, lambda index: None)
    function, table = script(tmp_path / "page" / "table.js")
    assert function == "odc.table"
    assert table["id"] == [3, 0]
    assert table["size"] == [3, 2]
    assert table["prefix"] == "x/"
    assert not {"purity", "entropy", "age", "switch", "tightness"} & table.keys()
    assert script(tmp_path / "page" / "chunk-00000.js")[1]["rows"][0]["far"] == [None, None, None]
    with Image.open(tmp_path / "page" / "chunk-00000.jpg") as sheet:
        assert sheet.getpixel((10, 10)) == pytest.approx((128, 128, 128), abs=3)
    write_page(tmp_path, data, picture)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.html", "page"]


def test_neighbours_are_named_by_row_and_slot(tmp_path):
    data = made_up(tmp_path, 5, per_cluster=3)
    write_page(tmp_path, data, picture, images_per_cluster=4, nearest_Mk=two_beside(data, 4))
    shown = Shown.of(data, 4)
    places = np.flatnonzero(shown.images_CS >= 0).tolist()
    rows = script(tmp_path / "page" / "chunk-00000.js")[1]["rows"]
    found = [line for row in rows for line in row["nearest"]]
    assert found == [[places[(at + 1) % len(places)], places[(at + 2) % len(places)]] for at in range(len(places))]


def test_small_parts():
    assert split_prefix(["/a/b/x.jpg", "/a/bc/y.jpg"]) == ("/a/", ["b/x.jpg", "bc/y.jpg"])
    assert split_prefix(["mnist5k/train/0", "mnist5k/train/1"]) == ("mnist5k/train/", ["0", "1"])
    assert split_prefix(["x", "a/y"]) == ("", ["x", "a/y"])
    wide = np.zeros((4, 10, 1), dtype=np.uint8)
    wide[:, 3:7] = 200
    assert np.all(np.asarray(thumbnail_of(wide, 2)) == 200)
    sheet = np.asarray(sprite(np.array([[0, -1]]), lambda index: np.full((3, 3, 3), 90, np.uint8), 3))
    assert sheet.shape == (24, 6, 3)
    assert sheet[:3, :3].min() == 90
    assert sheet.sum() == 90 * 27


@pytest.mark.parametrize(
    ("keys", "message"), [({"thumbnail": 0}, "clusters.thumbnail must"), ({"images_per_cluster": -1}, "must be at")]
)
def test_sizes_that_cannot_work(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        write_page(tmp_path, made_up(tmp_path, 3), picture, **keys)
    assert not (tmp_path / "page").exists()


# -- in a browser ------------------------------------------------------------------------------------------------------


class Page:
    """What a person does with the page."""

    def __init__(self, driver, file):
        self.driver, self.url = driver, file.as_uri()

    def open(self, hash_=""):
        self.driver.get("about:blank")
        began = time.perf_counter()
        self.driver.get(self.url + hash_)
        self.until("document.querySelectorAll('.card .thumb').length > 0")
        return time.perf_counter() - began

    def js(self, expression):
        return self.driver.execute_script(f"return {expression}")

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.js(condition):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.05)

    def choose(self, control, value):
        self.driver.execute_script(
            "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
            "c.dispatchEvent(new Event('input')); c.dispatchEvent(new Event('change'))",
            control,
            value,
        )

    def click(self, selector):
        self.driver.find_element("css selector", selector).click()

    def ids(self):
        return self.js("[...document.querySelectorAll('.card')].map(card => Number(card.dataset.id))")

    def shows(self, ids, seconds=30):
        """Wait until the cards are these: the address changes before they do."""
        end = time.monotonic() + seconds
        while (now := self.ids()) != ids and time.monotonic() < end:
            time.sleep(0.05)
        assert now == ids

    def errors(self):
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def of_size(clusters, marks=()):
    return pytest.param(clusters, id=f"{clusters} clusters", marks=marks)


@pytest.mark.parametrize("clusters", [of_size(10), of_size(1_000), of_size(10_000, pytest.mark.slow)])
def test_it_opens_sorts_filters_searches_and_shows_images(tmp_path, driver, clusters):
    data = made_up(tmp_path, clusters)
    began = time.perf_counter()
    page = Page(driver, write_page(tmp_path, data, picture, nearest_Mk=two_beside(data)))
    writing = time.perf_counter() - began
    seconds = page.open()
    files = [tmp_path / "index.html", *(tmp_path / "page").iterdir()]
    first = sum((tmp_path / "page" / name).stat().st_size for name in ("table.js",)) + files[0].stat().st_size
    print(
        f"\n{clusters} clusters, {len(data.paths)} images: {sum(f.stat().st_size for f in files) / 1e6:.2f} MB in "
        f"{len(files)} files, opens with {first / 1e6:.3f} MB in {seconds:.2f} s; "
        f"written in {writing:.1f} s"
    )
    assert seconds < 20
    look_at_all(page, data, min(clusters, 24))
    sort_and_filter(page, data)
    search(page, data)
    open_one(page, data)
    assert page.errors() == []


def look_at_all(page, data, cards):
    shown = Shown.of(data, 12)
    assert page.ids() == shown.clusters_C[:cards].tolist()
    assert f"{len(shown.clusters_C):,} clusters" in page.js("document.getElementById('summary').textContent")
    assert page.js("chunks[0].picture.naturalWidth") == 12 * 64
    assert page.js("document.querySelectorAll('#run polyline').length") == 4
    # What is on the screen is the image: its colour at the middle of the first thumbnail.
    box = page.js(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('.thumb').getBoundingClientRect())"
    )
    screen = _screen(page)
    wanted = picture(int(shown.images_CS[0, 0]))[32, 32]
    assert np.abs(screen[round(box[1]), round(box[0])].astype(int) - wanted).max() < 25


def _screen(page):
    import io

    with Image.open(io.BytesIO(page.driver.get_screenshot_as_png())) as image:
        return np.asarray(image.convert("RGB"))


def sort_and_filter(page, data):
    shown = Shown.of(data, 12)
    purity, entropy = purity_and_entropy(label_counts(data, shown))
    order = sorted(range(len(purity)), key=lambda row: (-float(f"{purity[row]:.4g}"), row))
    page.choose("sort", "purity")
    page.until("location.hash === '#sort=purity' && document.querySelectorAll('.card .thumb').length > 0")
    page.shows([int(shown.clusters_C[row]) for row in order[:24]])
    page.click("#dir")
    page.until("location.hash.includes('dir=reverse')")
    least = [row for row, value in enumerate(purity) if value == pytest.approx(min(purity), rel=1e-3)]
    page.until(f"{least}.includes(Number(document.querySelector('.card').dataset.row))")
    pure, narrow = np.round(purity, 4) >= 0.7, entropy <= np.log2(6) + 5e-4
    boxes = {"existing": pure, "relation": ~pure & narrow, "new": ~pure & ~narrow}
    for name, rows in boxes.items():
        page.click(f"[data-box={name}]")
        page.until(f"location.hash.includes('box={name}')")
        count = f"{rows.sum():,} of" if rows.any() else "No cluster"
        page.until(f"document.getElementById('status').textContent.startsWith('{count}')")
        page.until(f"document.querySelectorAll('.card').length === {min(rows.sum(), 24)}")
        assert set(page.ids()) <= set(shown.clusters_C[rows].tolist())
    assert sum(rows.sum() for rows in boxes.values()) == len(purity)


def search(page, data):
    shown = Shown.of(data, 12)
    page.open()
    page.choose("q", "#7")
    page.until("document.querySelectorAll('.card').length === 1")
    page.shows([7])
    wanted = len(data.paths) - 3
    page.choose("q", f"photo_{wanted}.JPG")
    page.until("document.querySelector('.what')?.textContent.startsWith('1 file found')")
    page.shows([int(data.labels_N[wanted])])
    page.choose("in", "label")
    page.choose("q", "kind c")
    counts = label_counts(data, shown)
    first_three = [np.argsort(-line, kind="stable")[:3] for line in counts.toarray()]
    top = [row for row, labels in enumerate(first_three) if 2 in labels and counts[row, 2] > 0]
    page.until(f"document.getElementById('status').textContent.startsWith('{len(top):,} of')")
    page.shows(shown.clusters_C[top[:24]].tolist())
    page.choose("q", "nothing like this")
    page.until("document.getElementById('status').textContent.startsWith('No cluster fits')")


def open_one(page, data):
    """A shared link: cluster 2, one of its images, and from there to a neighbour."""
    shown = Shown.of(data, 12)
    row = int(shown.row_of[2])
    page.open(f"#c=2&img={row * 12}")
    page.until("document.getElementById('detail').open && document.querySelector('#nearest .thumb')")
    text = page.js("document.getElementById('detail').innerText")
    members = np.flatnonzero(data.labels_N == 2)
    assert "Cluster 2" in text
    assert data.paths[shown.images_CS[row, 0]] in text
    assert "filled again with 9 images of #0" in text
    histogram = page.js("[...document.querySelectorAll('.hist .soft')].map(node => Number(node.textContent))")
    assert sum(histogram) == len(members)
    assert page.js("document.querySelectorAll('#detail polyline').length") == 2
    places = np.flatnonzero(shown.images_CS >= 0).tolist()
    beside = places[(places.index(row * 12) + 1) % len(places)]
    page.click("#nearest .thumb:nth-child(2)")
    page.until(f"document.querySelector('#nearest .thumb').dataset.image === '{beside}'")
    assert f"img={beside}" in page.js("location.hash")
    id_now = page.js("document.getElementById('which').textContent")
    page.click("[aria-label='next cluster']:enabled, [aria-label='previous cluster']:enabled")
    page.until(f"document.getElementById('which').textContent !== '{id_now}'")
    page.click("#close")
    page.until("!document.getElementById('detail').open && location.hash === ''")


def test_a_page_that_was_parted_from_its_files_says_so(tmp_path, driver):
    file = write_page(tmp_path, made_up(tmp_path, 3), picture)
    (tmp_path / "page" / "chunk-00000.jpg").unlink()
    driver.get(file.as_uri())
    page = Page(driver, file)
    page.until("document.querySelector('.thumbs')?.textContent.includes('chunk-00000.jpg is missing')")
    (tmp_path / "page" / "table.js").unlink()
    driver.get("about:blank")
    driver.get(file.as_uri())
    page.until("document.getElementById('status').textContent.includes('table.js is missing')")
