"""Ask a running `imgsafety serve`: python examples/service_client.py http://127.0.0.1:8000 PICTURE

The token, when the service wants one, is taken from IMGSAFETY_TOKEN.
"""

import json
import os
import sys
from pathlib import Path
from urllib.request import Request, urlopen

url, path = sys.argv[1:]
headers = {"Content-Type": "application/octet-stream", "Authorization": f"Bearer {os.environ.get('IMGSAFETY_TOKEN', '')}"}
with urlopen(Request(f"{url}/check", data=Path(path).read_bytes(), headers=headers), timeout=30) as answer:
    result = json.load(answer)
print(path, result["verdict"], *(reason["rule"] for reason in result["reasons"]), result["error"] or "")
