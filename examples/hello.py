"""The smallest app: one task that says where it ran.

    crdtsync dev --app examples/hello.py:app
    crdtsync task submit hello --arg name=world --wait

in two terminals; the second one needs CRDTSYNC_NODE, which the first one prints.
"""

from crdtsync import App

app = App("hello")


@app.task
async def hello(ctx, name: str) -> str:
    return f"hello {name}, from {ctx.region}"
