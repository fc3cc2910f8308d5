"""VQA Score and VLM Grader over HTTP, against a server on this machine that does all that servers do."""

import asyncio
import gzip
import json
import logging
import math
import threading
import traceback
from email.utils import formatdate

import pytest
import torch
from noise_search.verifiers import openai_endpoint
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.openai_endpoint import Endpoint, chat_url
from noise_search.verifiers.vlm import Ask, VLMGrader, VQAScore, _grading_text, log_odds
from vlm_server import Reply, VLMServer, answer, grade_brightness, grades, tokens

pytest.importorskip("aiohttp")

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def serve():
    """Starts servers that are closed after the test."""
    servers = []

    def start(reply=grade_brightness):
        servers.append(VLMServer(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Pauses:
    """Instead of waiting: what would have been waited for."""

    def __init__(self):
        self.seconds = []

    async def __call__(self, seconds):
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def endpoint(server, **settings):
    settings.setdefault("sleep", Pauses())
    return Endpoint(server.url, "tiny", **settings)


def shades(count):
    """Images that differ in brightness: image i has the value i / count."""
    return torch.stack([torch.full((8, 6, 3), index / count) for index in range(count)])


def grade(server, count=1, samples=1, **settings):
    return VLMGrader(endpoint(server, **settings), samples).score(shades(count), ["a cat"] * count)


def ask_yes_no(server, count=1, **settings):
    return VQAScore(endpoint(server, **settings)).score(shades(count), ["a cat"] * count)


# What is sent


def test_proxies_of_the_environment_are_not_used(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # where nobody listens
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = serve()
    grade(server, tries=1)
    assert len(server.requests) == 1


def test_the_question_of_vqa_score(serve):
    server = serve(lambda request: tokens(Yes=-0.1, No=-2.5))
    VQAScore(endpoint(server)).score(shades(1), ['a sign "OPEN"'])
    [request] = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.text == 'Does this figure show "a sign \\"OPEN\\""? Please answer yes or no.'
    sent = {name: request.json[name] for name in ("model", "max_tokens", "logprobs", "top_logprobs")}
    assert sent == {"model": "tiny", "max_tokens": 1, "logprobs": True, "top_logprobs": 20}


def test_the_picture_is_a_png_with_the_images_pixels(serve):
    server = serve()
    image = torch.rand(40, 30, 3)
    VLMGrader(endpoint(server)).score(image[None], ["a cat"])
    assert torch.equal(torch.tensor(server.requests[0].image), (image * 255).round().to(torch.uint8))


def test_large_pictures_are_sent_smaller(serve):
    server = serve()
    VLMGrader(endpoint(server)).score(torch.rand(1, 3000, 1500, 3), ["a cat"])
    assert server.requests[0].image.shape == (1024, 512, 3)


@pytest.mark.parametrize(("height", "width", "sent"), [(1, 1, (28, 28)), (3, 2000, (28, 1024)), (100, 20, (100, 28))])
def test_tiny_and_narrow_pictures_are_sent_larger(serve, height, width, sent):
    server = serve()
    VLMGrader(endpoint(server)).score(torch.rand(1, height, width, 3), ["a cat"])
    assert server.requests[0].image.shape == (*sent, 3)


def test_a_grading_has_a_schema_with_the_explanation_before_the_score(serve):
    server = serve()
    grade(server)
    form = server.requests[0].json["response_format"]["json_schema"]
    assert form["strict"] is True and list(form["schema"]["properties"])[-1] == "overall_score"
    for part in form["schema"]["properties"].values():
        assert list(part["properties"]) == ["explanation", "score"] == part["required"]


def test_one_sample_is_greedy_and_more_are_drawn_with_seeds_of_their_own(serve):
    server = serve()
    grade(server)
    assert [(r.json["temperature"], r.json["seed"]) for r in server.requests] == [(0.0, 0)]
    server.requests.clear()
    grade(server, samples=3)
    assert sorted((r.json["temperature"], r.json["seed"]) for r in server.requests) == [(0.7, 0), (0.7, 1), (0.7, 2)]


# What comes back


def test_log_odds_sum_the_ways_to_write_a_word(serve):
    logprobs = {"Yes": -1.0, " yes": -2.0, "YES": -3.0, "No": -1.5, "no": -4.0, "Maybe": -2.2}
    server = serve(lambda request: tokens(**logprobs))
    expected = math.log(math.exp(-1) + math.exp(-2) + math.exp(-3)) - math.log(math.exp(-1.5) + math.exp(-4))
    assert abs(float(ask_yes_no(server)) - expected) <= 1e-6


def test_marks_around_a_word_are_none_of_it():
    logprobs = [("**Yes", -1.0), ("'yes'", -2.0), ("Yes.", -3.0), ("*No*", -1.5), ("None", -1.0), ("yesterday", -2.0)]
    expected = math.log(math.exp(-1) + math.exp(-2) + math.exp(-3)) + 1.5
    assert abs(log_odds(logprobs) - expected) <= 1e-6


def test_answers_belong_to_their_images_whatever_order_they_come_in(serve):
    count = 6
    answered = [threading.Event() for _ in range(count + 1)]
    answered[count].set()

    def last_first(request):
        index = round(request.brightness * count)
        assert answered[index + 1].wait(30)
        answered[index].set()
        return grade_brightness(request)

    values = grade(serve(last_first), count, concurrency=count)
    expected = torch.tensor([10 * round(255 * index / count) / 255 for index in range(count)])
    assert (values[:, 0] - expected).abs().max() < 1e-5


def test_samples_are_averaged_image_by_image(serve):
    def by_seed(request):
        return answer(grades(2 * request.json["seed"] + round(4 * request.brightness)))

    values = grade(serve(by_seed), count=2, samples=3)
    assert values[:, 0].tolist() == [2.0, 4.0]


def test_columns_are_the_overall_grade_and_then_the_criteria(serve):
    text = grades(9, accuracy_to_prompt=1, creativity_and_originality=2, consistency_and_cohesion=4.5)
    grader = VLMGrader(endpoint(serve(lambda request: answer(text))))
    assert grader.score(shades(1), ["a cat"]).tolist() == [[9.0, 1.0, 2.0, 9.0, 4.5, 9.0]]
    assert grader.members[0] == "VLM Grader (tiny)" and grader.members[1].endswith("accuracy")
    assert grader.member_weights == (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


FORM = _grading_text("a cat").split("nothing else:\n")[1]


@pytest.mark.parametrize(
    "text",
    [
        "```json\n" + grades(7) + "\n```",
        "Let me look. {it is nice}\n" + grades(7) + "\nThat is all.",
        grades(3).replace("because", "a {curly} brace") + " No, rather: " + grades(7),
        json.dumps({name: 7 for name in json.loads(grades(7))}),
        grades(7).replace("7", '"7"'),
        grades(7).replace("7", '"7/10"'),
        grades(7).replace("7", '"**7.0** out of 10"'),
        grades(7).replace("7", "7 / 10"),
        grades(7).replace("7", "**7**"),
        grades(7).replace("}", ",}"),
        "**Grades:**\n" + grades(7) + "\nThe form was:\n```json\n" + FORM + "\n```",
        grades(7) + " For example: " + grades(0).replace("0", '"N"'),
        FORM.replace("0.0", "7"),
        json.dumps({"grades": json.loads(grades(7).replace("overall_score", "Overall Score"))}),
        "<think>Perhaps " + grades(3) + "</think>" + grades(7),
        "Perhaps " + grades(3) + "</think>" + grades(7),
    ],
)
def test_grades_are_found_in_the_text_around_them(serve, text):
    assert grade(serve(lambda request: answer(text))).tolist() == [[7.0] * 6]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("It is a fine picture, 8 of 10.", "holds no grading in JSON"),
        (grades(7)[:-40], "holds no grading in JSON"),
        (grades(11), "gives accuracy_to_prompt 11, which is not between 0 and 10"),
        (grades(math.nan), "gives accuracy_to_prompt nan"),
        (grades(7).replace("overall_score", "overall"), "has no score for overall_score"),
        (grades(7).replace("7", "true"), "gives accuracy_to_prompt True"),
        (grades(7).replace("7", '"high"'), "has no score for accuracy_to_prompt"),
        ("", "holds no grading in JSON: ''"),
        ("{" * 5000, "holds no grading in JSON"),
        (FORM, "only repeats the form of the question"),
        ("<think>Perhaps " + grades(7), "holds no grading in JSON"),
        (grades(7).replace("7", '"7/100"'), "has no score for accuracy_to_prompt"),
        (grades(7).replace("7", '"7-8"'), "has no score for accuracy_to_prompt"),
        (grades(7).replace("7", "70/100"), "holds no grading in JSON"),
    ],
)
def test_what_is_no_grading_is_asked_for_again_and_then_an_error(serve, text, problem):
    server = serve(lambda request: answer(text))
    with pytest.raises(VerifierError, match=problem):
        grade(server)
    seeds = [request.json["seed"] for request in server.requests]
    assert seeds == [0, 1000, 2000]
    assert server.requests[1].json["temperature"] > 0


def test_only_the_bad_grading_is_asked_for_again(serve):
    def bad_first_time(request):
        bright = request.brightness > 0.6
        return answer("hm") if bright and request.json["seed"] == 0 else grade_brightness(request)

    server = serve(bad_first_time)
    values = grade(server, 3)
    assert len(server.requests) == 4 and (values[:, 0].diff() > 3).all()


def test_without_logprobs_is_an_error_that_names_the_grader(serve):
    server = serve(lambda request: answer("Yes"))
    with pytest.raises(VerifierError, match="gave no top_logprobs for tiny.*Use VLM Grader.*answered 'Yes'"):
        ask_yes_no(server)
    assert len(server.requests) == 1


def test_neither_yes_nor_no_is_an_error_that_shows_what_came(serve):
    server = serve(lambda request: tokens(**{"<think>": -0.01, "The": -5.0}))
    with pytest.raises(VerifierError, match=r"neither yes nor no, but with '<think>' \(0.99\), 'The'"):
        ask_yes_no(server)


def test_yes_and_no_that_hardly_ever_come_are_no_answer(serve):
    server = serve(lambda request: tokens(**{"<think>": -0.0001, "Yes": -9.5, "No": -10.0}))
    with pytest.raises(VerifierError, match="neither yes nor no, but with '<think>'"):
        ask_yes_no(server)


def test_nothing_but_yes_leaves_no_the_rest(serve):
    sure, surer = {"Yes": -0.02, "Maybe": -5.0}, {"Yes": -0.002, "Maybe": -8.0}
    values = [float(ask_yes_no(serve(lambda request, t=t: tokens(**t)))) for t in (sure, surer)]
    assert values[0] == pytest.approx(-0.02 + 5.0, abs=1e-5)  # no can have at most what "Maybe" has
    assert values[1] == pytest.approx(-0.002 + 8.0, abs=1e-5)
    assert float(ask_yes_no(serve(lambda request: tokens(No=0.0, Never=-9999.0)))) == pytest.approx(-100)


def test_no_cannot_have_more_than_the_others_leave(serve):
    server = serve(lambda request: tokens(Yes=math.log(0.7), Maybe=math.log(0.2)))
    assert float(ask_yes_no(server)) == pytest.approx(math.log(0.7 / 0.1), abs=1e-5)


def test_a_probability_above_one_counts_as_one(serve):
    server = serve(lambda request: tokens(Yes=1000.0, No=-2.0))
    assert float(ask_yes_no(server)) == 2.0


@pytest.mark.parametrize("token", ["Yes", "Maybe"])
def test_probabilities_that_are_no_numbers_are_an_error(serve, token):
    server = serve(lambda request: tokens(**{"Yes": -1.0, "No": -1.0, token: math.nan}))
    with pytest.raises(VerifierError, match="probabilities are not numbers"):
        ask_yes_no(server)


def test_a_refusal_is_shown(serve):
    refusal = {"choices": [{"message": {"role": "assistant", "content": None, "refusal": "I cannot look at this"}}]}
    with pytest.raises(VerifierError, match="holds no grading in JSON: 'I cannot look at this'"):
        grade(serve(lambda request: Reply(refusal)))


# Servers in trouble


@pytest.mark.parametrize(
    "trouble",
    [
        Reply("busy", 429),
        Reply("broken", 500),
        Reply("<html>bad gateway</html>", 502),
        Reply({"error": {"message": "overloaded", "code": 529}}),
        Reply(""),
        Reply("nonsense"),
        Reply({"choices": []}),
        Reply([1, 2]),
    ],
)
def test_a_server_in_trouble_is_asked_again(serve, trouble):
    server = serve(lambda request: trouble if request.number < 2 else grade_brightness(request))
    pauses = Pauses()
    assert grade(server, sleep=pauses).tolist() == [[0.0] * 6]
    assert len(server.requests) == 3
    assert 1 <= pauses.seconds[0] <= 2 <= pauses.seconds[1] <= 4


def test_a_server_that_stays_in_trouble_is_an_error(serve):
    server = serve(lambda request: Reply({"error": {"message": "no memory left"}}, 500))
    pauses = Pauses()
    with pytest.raises(VerifierError, match="failed 5 times, at last: 500 no memory left"):
        grade(server, sleep=pauses)
    assert len(server.requests) == 5 and len(pauses.seconds) == 4


def test_pauses_do_not_all_have_the_same_length(serve):
    gate = threading.Barrier(8)

    def reply(request):
        gate.wait(30)  # opens for all first tries, and then for all second ones
        return Reply("", 503) if request.number < 8 else grade_brightness(request)

    pauses = Pauses()
    grade(serve(reply), 8, sleep=pauses, concurrency=8)
    assert len(set(pauses.seconds)) == len(pauses.seconds) == 8


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(serve, status):
    busy = Reply("", status, {"Retry-After": "77"})
    pauses = Pauses()
    grade(serve(lambda request: grade_brightness(request) if request.number else busy), sleep=pauses)
    assert pauses.seconds == [77.0]


def test_retry_after_may_be_a_date(monkeypatch):
    monkeypatch.setattr(openai_endpoint.time, "time", lambda: 1_000_000.0)
    assert openai_endpoint._retry_after(formatdate(1_000_030, usegmt=True)) == 30.0
    assert openai_endpoint._retry_after(formatdate(999_000, usegmt=True)) == 0.0
    assert openai_endpoint._retry_after("soon") == 0.0


def test_a_server_that_wants_an_hour_is_an_error(serve):
    with pytest.raises(VerifierError, match="asks to wait 3600 seconds: 429 out of quota"):
        grade(serve(lambda request: Reply("out of quota", 429, {"Retry-After": "3600"})))


def test_no_answer_in_time_is_tried_again_and_then_an_error(serve):
    server = serve(lambda request: None)
    with pytest.raises(VerifierError, match=r"failed 2 times, at last: no answer in 0.2 seconds"):
        grade(server, timeout=0.2, tries=2)
    assert len(server.requests) == 2


def test_a_server_that_is_not_there_is_an_error():
    server = VLMServer()
    server.close()
    with pytest.raises(VerifierError, match="failed 2 times, at last: .*onnect"):
        grade(server, tries=2)


def test_an_endless_answer_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(openai_endpoint, "MAX_REPLY", 1000)
    with pytest.raises(VerifierError, match="an answer of more than"):
        grade(serve(lambda request: Reply("x" * 300_000)), tries=1)


def test_a_packed_answer_is_not_unpacked(serve, monkeypatch):
    monkeypatch.setattr(openai_endpoint, "MAX_REPLY", 10_000)
    packed = Reply(gzip.compress(b" " * 5_000_000), headers={"Content-Encoding": "gzip"})
    server = serve(lambda request: packed)
    with pytest.raises(VerifierError, match="an answer that is no chat completion"):
        grade(server, tries=1)
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("body", ["[" * 100_000, '{"choices": ' + "[" * 100_000])
def test_a_deeply_nested_answer_is_asked_for_again(serve, body):
    server = serve(lambda request: grade_brightness(request) if request.number else Reply(body))
    assert grade(server).shape == (1, 6)


def test_what_a_server_says_stays_on_one_line_and_leaves_the_terminal_alone(serve, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(VerifierError, match="at last: 500 busy"):
        grade(serve(lambda request: Reply({"error": {"message": "busy\x1b[2J\r\nall is well"}}, 500)), tries=2)
    assert "busy[2J all is well" in caplog.text and "\x1b" not in caplog.text


def test_a_redirect_to_nonsense_is_an_error(serve):
    with pytest.raises(VerifierError, match="redirects to an address that cannot be read"):
        grade(serve(lambda request: Reply("", 302, {"Location": "http://[x"})))


@pytest.mark.parametrize("text", [None, 5])
def test_an_answer_in_parts_that_are_no_text(serve, text):
    parts = [{"type": "text", "text": text}, {"type": "text", "text": grades(7)}]
    assert grade(serve(lambda request: answer(parts))).tolist() == [[7.0] * 6]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("response_format", "json_schema is not supported"),
        ("seed", "unknown field seed"),
        ("temperature", "temperature must be 1"),
    ],
)
def test_what_a_server_does_not_know_is_left_out(serve, name, said):
    def reply(request):
        return Reply({"error": {"message": said}}, 400) if name in request.json else grade_brightness(request)

    server = serve(reply)
    grader = VLMGrader(endpoint(server, concurrency=1))
    assert grader.score(shades(2), ["a cat"] * 2).shape == (2, 6)
    assert [name in request.json for request in server.requests] == [True, False, False]
    grader.score(shades(1), ["a cat"])
    assert name not in server.requests[-1].json


def test_questions_that_were_sent_before_it_was_known_are_sent_again(serve):
    gate = threading.Barrier(3)

    def reply(request):
        if "seed" in request.json:
            gate.wait(30)
            return Reply({"error": {"message": "no seed, please"}}, 400)
        return grade_brightness(request)

    assert grade(serve(reply), 3, concurrency=3).shape == (3, 6)


def test_the_newer_name_of_max_tokens(serve):
    def reply(request):
        if "max_tokens" in request.json:
            return Reply({"error": {"message": "use max_completion_tokens instead of max_tokens"}}, 400)
        return grade_brightness(request)

    server = serve(reply)
    grade(server)
    assert server.requests[-1].json["max_completion_tokens"] == 1500


def test_a_server_that_allows_fewer_logprobs(serve):
    def reply(request):
        few = request.json["top_logprobs"] <= 5
        return tokens(Yes=-1.0, No=-1.0) if few else Reply({"error": {"message": "top_logprobs: at most 5"}}, 400)

    assert float(ask_yes_no(serve(reply))) == 0.0


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": {"message": "no such model"}}, 404), "answered 404 no such model; check the URL and the mod"),
        (Reply({"error": "bad image"}, 400), "refused the request: 400 bad image"),
        (Reply("", 401), "did not accept a request without a key: 401"),
    ],
)
def test_what_cannot_get_better_is_not_tried_again(serve, reply, said):
    server = serve(lambda request: reply)
    with pytest.raises(VerifierError, match=said):
        grade(server)
    assert len(server.requests) == 1


# Limits


def test_no_more_requests_at_once_than_allowed(serve):
    gate = threading.Barrier(3)

    def reply(request):
        gate.wait(30)  # opens when three are here
        return grade_brightness(request)

    server = serve(reply)
    grade(server, 9, concurrency=3)
    assert server.most == 3 and len(server.requests) == 9


def test_no_more_calls_than_allowed_with_repeated_ones(serve):
    server = serve(lambda request: Reply("", 500) if request.number % 2 else grade_brightness(request))
    with pytest.raises(
        VerifierError, match="has made 5 calls to .* in this search .*which is its limit: raise max_call"
    ):
        grade(server, 8, max_calls=5)
    assert len(server.requests) <= 5


def test_a_limit_reached_by_failures_says_why_they_failed(serve):
    server = serve(lambda request: Reply({"error": {"message": "the model is still loading"}}, 503))
    with pytest.raises(VerifierError) as caught:
        grade(server, 1, max_calls=3, tries=5)
    said = (
        "this search (3 of them failed, at last: 503 the model is still loading), which is its limit: raise max_calls"
    )
    assert said in str(caught.value)
    assert len(server.requests) == 3


def test_failures_of_another_search_are_not_told(serve):
    server = serve(lambda request: grade_brightness(request) if request.number else Reply("still loading", 503))
    search = ["first"]
    grader = VLMGrader(endpoint(server, max_calls=2, run_key=lambda: search[0]))
    grader.score(shades(1), ["a cat"])
    search[0] = "second"
    grader.score(shades(2), ["a cat"] * 2)
    with pytest.raises(VerifierError, match="2 calls to .* in this search, which is its limit"):
        grader.score(shades(1), ["a cat"])


def test_a_new_search_has_all_its_calls(serve):
    server, search = serve(), ["first"]
    grader = VLMGrader(endpoint(server, max_calls=2, run_key=lambda: search[0]))
    grader.score(shades(2), ["a cat"] * 2)
    with pytest.raises(VerifierError, match="limit"):
        grader.score(shades(1), ["a cat"])
    search[0] = "second"
    grader.score(shades(2), ["a cat"] * 2)
    assert len(server.requests) == 4


def test_cancel_ends_the_waiting(serve):
    class Cancelled(Exception):
        pass

    server = serve(lambda request: None)

    def check():
        if server.came.is_set():
            raise Cancelled

    with pytest.raises(Cancelled):
        grade(server, 3, check=check, timeout=600)


def test_cancel_ends_a_pause(serve):
    class Cancelled(Exception):
        pass

    paused = threading.Event()

    async def sleep(seconds):
        paused.set()
        await asyncio.Event().wait()  # for ever

    def check():
        if paused.is_set():
            raise Cancelled

    with pytest.raises(Cancelled):
        grade(serve(lambda request: Reply("", 500)), check=check, sleep=sleep)


def test_it_works_where_a_loop_is_running(serve):
    """ComfyUI calls nodes from a coroutine."""
    server = serve()

    async def node():
        return grade(server)

    assert asyncio.run(node()).shape == (1, 6)


def test_nobody_waits_for_a_look_up_that_was_given_up():
    let_go, hung = threading.Event(), threading.Event()

    def look_up():
        let_go.wait(5)  # without the other thread's going on this would be all
        hung.set()

    async def work():
        asyncio.get_running_loop().run_in_executor(None, look_up)
        return "done"

    assert openai_endpoint.in_thread(work) == "done"
    assert not hung.is_set()
    let_go.set()


def test_without_a_loop_nobody_waits_for_ever(monkeypatch):
    def fail(coroutine):
        coroutine.close()
        raise OSError("too many open files")

    monkeypatch.setattr(openai_endpoint.asyncio, "run", fail)
    with pytest.raises(OSError, match="too many open files"):
        openai_endpoint.in_thread(lambda: asyncio.sleep(0))


def test_no_images_are_no_calls(serve):
    server = serve()
    assert VQAScore(endpoint(server)).score(torch.zeros(0, 4, 4, 3), []).shape == (0, 1)
    assert VLMGrader(endpoint(server)).score(torch.zeros(0, 4, 4, 3), []).shape == (0, 6)
    assert server.requests == []


# The key


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("TINY_KEY", KEY)
    monkeypatch.setenv("TINY_KEY_HOST", "127.0.0.1")
    return "TINY_KEY"


def test_the_key_is_sent(serve, key):
    server = serve()
    grade(server, key_variable=key)
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_without_a_variable_no_key_is_sent(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve()
    grade(server)
    assert "Authorization" not in server.requests[0].headers


def everything_said(error):
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"error": {"message": f"wrong key {KEY}"}}, 401),
        Reply({"error": {"message": f"you sent {KEY}"}}, 400),
        Reply(f"you sent Bearer {KEY}", 500),
        Reply(f"nonsense {KEY}"),
        Reply("", 307, {"Location": f"/elsewhere?key={KEY}"}),
        Reply("", 307, {"Location": f"/{KEY}"}),
        Reply("", 418),
    ],
)
def test_the_key_is_in_no_error_and_no_log(serve, key, caplog, reply):
    caplog.set_level(logging.DEBUG)
    vlm = endpoint(serve(lambda request: reply), key_variable=key)
    with pytest.raises(VerifierError) as caught:
        VLMGrader(vlm).score(shades(1), ["a cat"])
    assert KEY not in everything_said(caught.value)
    assert KEY not in caplog.text


@pytest.mark.parametrize("judge", [VLMGrader, VQAScore])
@pytest.mark.parametrize(
    "reply",
    [answer(f"you sent {KEY}"), Reply({"choices": [{"message": {"content": [{"text": KEY}]}}]}), tokens(**{KEY: -0.1})],
)
def test_the_key_in_an_answer_is_in_no_error_and_no_log(serve, key, caplog, judge, reply):
    caplog.set_level(logging.DEBUG)
    vlm = endpoint(serve(lambda request: reply), key_variable=key)
    with pytest.raises(VerifierError, match=r"\*\*\*") as caught:
        judge(vlm).score(shades(1), ["a cat"])
    assert KEY not in everything_said(caught.value)
    assert KEY not in caplog.text


def test_a_key_that_is_a_plain_word_leaves_answers_alone(serve, monkeypatch):
    monkeypatch.setenv("TEST_WORD", "score")
    monkeypatch.setenv("TEST_WORD_HOST", "127.0.0.1")
    assert torch.equal(grade(serve(), 2, key_variable="TEST_WORD"), grade(serve(), 2))


def test_the_key_is_in_no_identity_and_no_repr(serve, key, monkeypatch):
    vlm = endpoint(serve(), key_variable=key)
    before = VLMGrader(vlm).identity(), VQAScore(vlm).identity(), vlm.identity()
    VLMGrader(vlm).score(shades(1), ["a cat"])
    assert KEY not in repr(vlm) + str(vars(vlm)) + str(before)
    monkeypatch.setenv(key, "another")
    assert (VLMGrader(vlm).identity(), VQAScore(vlm).identity(), vlm.identity()) == before


def test_a_redirect_is_not_followed(serve, key):
    other = serve()
    server = serve(lambda request: Reply("", 307, {"Location": other.url + "/chat/completions"}))
    with pytest.raises(VerifierError, match="redirects to http://127.0.0.1.*which is not followed"):
        grade(server, key_variable=key)
    assert other.requests == []


def test_a_key_goes_to_no_host_that_the_user_did_not_name(serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("SOME_SECRET", KEY)
    with pytest.raises(
        VerifierError, match="key in SOME_SECRET is not sent to 127.0.0.1.*SOME_SECRET_HOST to 127.0.0.1"
    ):
        grade(server, key_variable="SOME_SECRET")
    monkeypatch.setenv("SOME_SECRET_HOST", "example.com, 127.0.0.1")
    grade(server, key_variable="SOME_SECRET")
    assert len(server.requests) == 1


def test_the_keys_of_known_services_go_to_their_hosts_only(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Endpoint("https://api.openai.com/v1", "some-model", "OPENAI_API_KEY")
    with pytest.raises(VerifierError, match="is not sent to 127.0.0.1"):
        Endpoint(serve().url, "some-model", "OPENAI_API_KEY")
    with pytest.raises(VerifierError, match="is not sent to api.openai.com.example"):
        Endpoint("https://api.openai.com.example/v1", "some-model", "OPENAI_API_KEY")


def test_a_services_key_is_not_sent_unencrypted(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(VerifierError, match="key in OPENAI_API_KEY is not sent unencrypted: write https://"):
        Endpoint("http://api.openai.com/v1", "some-model", "OPENAI_API_KEY")


def test_the_case_of_a_host_does_not_matter(key, monkeypatch):
    monkeypatch.setenv("TINY_KEY_HOST", "GPU-Box.local")
    assert Endpoint("http://gpu-BOX.local/v1", "tiny", key)._key() == KEY


@pytest.mark.parametrize("typed", [KEY, "AIzaSyD0123456789", "0123456789ABCDEF"])
def test_a_key_typed_in_by_mistake_is_not_repeated(typed):
    with pytest.raises(VerifierError, match="as it may be a key") as caught:
        Endpoint("https://api.openai.com/v1", "some-model", typed)
    assert typed not in everything_said(caught.value)


@pytest.mark.parametrize(("value", "said"), [("", "is not set"), ("a\nb", "has characters that no key has")])
def test_a_key_that_is_none(monkeypatch, value, said):
    monkeypatch.setenv("TINY_KEY", value)
    with pytest.raises(VerifierError, match=f"environment variable TINY_KEY {said}"):
        Endpoint("http://localhost/v1", "tiny", "TINY_KEY")


# Settings


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("http://localhost:8080/v1", "http://localhost:8080/v1/chat/completions"),
        (" https://example.com/v1/ ", "https://example.com/v1/chat/completions"),
        ("https://example.com/v1/chat/completions", "https://example.com/v1/chat/completions"),
    ],
)
def test_the_url_may_be_the_apis_or_the_full_one(url, full):
    assert chat_url(url) == full


@pytest.mark.parametrize(
    "url",
    ["", "example.com/v1", "file:///etc/passwd", "ftp://example.com", "http://", "http://[", "http://a:b:c/"]
    + ["http://example.com/v1\nroot: all is well", "http://example.com/v 1"],
)
def test_what_is_no_url(url):
    with pytest.raises(VerifierError, match="URL of VLM Endpoint"):
        chat_url(url)


@pytest.mark.parametrize(
    "url", [f"https://me:{KEY}@example.com/v1", f"https://example.com/v1?key={KEY}", "https://example.com?"]
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(VerifierError, match="must hold no secrets") as caught:
        chat_url(url)
    assert KEY not in everything_said(caught.value)


def test_identity_is_the_url_and_the_model():
    first = Endpoint("http://localhost/v1", "one")
    assert VQAScore(first).identity() == VQAScore(Endpoint("http://localhost/v1/", "one", timeout=1)).identity()
    assert VQAScore(first).identity() != VQAScore(Endpoint("http://localhost/v1", "two")).identity()
    assert VQAScore(first).identity() != VQAScore(Endpoint("http://localhost/v2", "one")).identity()


def test_a_model_must_be_named():
    with pytest.raises(VerifierError, match="no model given"):
        Endpoint("http://localhost/v1", " ")


def test_an_empty_prompt_is_an_error(serve):
    server = serve()
    for verifier in (VQAScore(endpoint(server)), VLMGrader(endpoint(server))):
        with pytest.raises(VerifierError, match="the prompt is empty"):
            verifier.score(shades(1), ["  "])
    assert server.requests == []


def test_a_question_needs_a_place_for_the_prompt(serve):
    with pytest.raises(VerifierError, match=r"has no \{prompt\} in it"):
        VQAScore(endpoint(serve()), "Is it nice?")


def test_one_image_in_several_questions_is_encoded_once(serve, monkeypatch):
    made = []
    original = openai_endpoint.data_url
    monkeypatch.setattr(openai_endpoint, "data_url", lambda image: made.append(1) or original(image))
    grade(serve(), count=2, samples=4)
    assert len(made) == 2


def test_first_tokens_come_in_the_order_of_the_questions(serve):
    server = serve(lambda request: tokens(Yes=-1 - request.brightness, No=-3.0))
    pairs = endpoint(server).first_tokens([Ask(image, "?") for image in shades(5)])
    assert [dict(one)["Yes"] for one in pairs] == sorted((dict(one)["Yes"] for one in pairs), reverse=True)
