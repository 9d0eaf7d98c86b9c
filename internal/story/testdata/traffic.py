# The connections of trace.twt.
import os, socket, time
l=socket.socket(); l.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); l.bind(("127.0.0.1",8080)); l.listen(8)
def pair():
    c=socket.create_connection(("127.0.0.1",8080)); s,_=l.accept(); return c,s
# server closes first
c,s=pair(); s.close(); time.sleep(.01); c.close()
# data after close: RST
c,s=pair(); c.sendall(b"x"*10); time.sleep(.01); s.close(); time.sleep(.01)
try: c.recv(1)
except OSError: pass
c.close()
# refused
try: socket.create_connection(("127.0.0.1",9999))
except OSError: pass
# bind conflict
b=socket.socket()
try: b.bind(("127.0.0.1",8080))
except OSError: pass
# half closed, still open at the end
c,s=pair(); c.shutdown(socket.SHUT_WR); time.sleep(.05)
os._exit(0)
