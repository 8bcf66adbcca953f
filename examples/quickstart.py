"""Ten lines of Python: classify two headlines, then stream a chat reply.

make serve                                    in one terminal
.venv/bin/python examples/quickstart.py       in another
"""

from shoal import Client

with Client("127.0.0.1:50051") as client:
    reply = client.classify("bbc-topics", ["Shares rose after the bank cut rates", "A late goal won the cup"])
    for result in reply:
        print(result.label, f"{result.score:.2f}", "by version", reply.version)

    question = [("user", "In one short paragraph: why do fish swim in shoals?")]
    with client.stream_generate("smollm2", messages=question, temperature=0) as stream:
        for delta in stream:
            print(delta.text, end="", flush=True)
