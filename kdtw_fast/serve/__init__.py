"""A pair behind an address: OpenAI's completions, LibreTranslate's translate, metrics, and a page (``kdtw serve``).

Needs the extra "serve" (starlette, uvicorn, prometheus-client).
"""
