"""A client that begins a trace. `python client_traced.py URL`, with OTEL_EXPORTER_OTLP_ENDPOINT set.

Prints the ids of its trace and of its span, and what was answered.
"""

import sys
import urllib.request

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
with trace.get_tracer("client").start_as_current_span("buy", kind=trace.SpanKind.CLIENT) as span:
    headers = {}
    propagate.inject(headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer = opener.open(urllib.request.Request(sys.argv[1], headers=headers), timeout=10)
    context = span.get_span_context()
    print(f"{context.trace_id:032x} {context.span_id:016x} {answer.read().decode()}")
provider.shutdown()
