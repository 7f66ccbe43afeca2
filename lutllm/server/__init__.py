"""An OpenAI-compatible HTTP endpoint over one loaded artifact; the extra `lutllm[serve]`.

settings   what can be configured
protocol   requests, validated
responses  what is sent back
stops      stop strings in streamed text
engine     one thread that runs one sequence at a time behind a bounded queue
app        the routes (starlette)
run        the server (uvicorn)
"""
