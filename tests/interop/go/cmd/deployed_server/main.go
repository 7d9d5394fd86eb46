// The deployed server, from its wire protocol: TLS with ECH, WebSocket with the token as its protocol, then yamux or one simple
// connection, chosen by the first byte of the first message. Its flags add the behaviours that a client has to survive.
package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"

	"ech-workers.example/interop/deployed"
)

const (
	decoy       = "<!doctype html><title>Welcome</title><h1>It works</h1>\n"
	preambleMax = 512
	relayBuffer = 32 << 10
)

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

type server struct {
	token      string
	tokenIn    string
	echo       string
	closeAfter int64
	dialDelay  time.Duration
	relayed    atomic.Int64
	sessions   sync.Map
}

func main() {
	log.SetFlags(log.Lmicroseconds)
	var certificates, keys, retryKeys list
	s := &server{}
	listen := flag.String("listen", "127.0.0.1:0", "address")
	flag.Var(&certificates, "certificate", "CHAIN.pem:KEY.pem (repeat; chosen by server name, the first is the default)")
	flag.Var(&keys, "ech-key", "RFC 9934 file, not sent as a retry configuration (repeat)")
	flag.Var(&retryKeys, "ech-retry-key", "RFC 9934 file, sent as a retry configuration (repeat)")
	alpn := flag.String("alpn", "http/1.1", "protocols that TLS selects from; with h2 this is a net/http server with HTTP/2 on; empty: none")
	version := flag.String("tls", "1.3", "highest TLS version: 1.2 or 1.3")
	flag.StringVar(&s.token, "token", "", "the token; empty: everyone may in")
	flag.StringVar(&s.tokenIn, "token-in", "header", "header, or path")
	flag.StringVar(&s.echo, "echo", "", "with -token-in path: what the 101 says in Sec-WebSocket-Protocol: none (no header), or empty")
	curves := flag.String("curves", "", "names of the groups to accept, with commas; empty: Go's own")
	cutAfter := flag.Int("cut-after", -1, "close each connection when this many bytes of TLS were written")
	flag.Int64Var(&s.closeAfter, "close-after", 0, "cut the connection after this many bytes were relayed to the client")
	flag.DurationVar(&s.dialDelay, "dial-delay", 0, "wait before dialling a target")
	flag.Parse()

	config := &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13}
	var err error
	if config.CurvePreferences, err = deployed.Curves(*curves); err != nil {
		log.Fatal(err)
	}
	if *version == "1.2" {
		config.MaxVersion = tls.VersionTLS12
	}
	if *alpn != "" {
		config.NextProtos = strings.Split(*alpn, ",")
	}
	for _, pair := range certificates {
		chain, key, _ := strings.Cut(pair, ":")
		certificate, err := tls.LoadX509KeyPair(chain, key)
		if err != nil {
			log.Fatal(err)
		}
		config.Certificates = append(config.Certificates, certificate)
	}
	for i, paths := range []list{keys, retryKeys} {
		for _, path := range paths {
			key, err := deployed.EchKey(path, i == 1)
			if err != nil {
				log.Fatal(err)
			}
			config.EncryptedClientHelloKeys = append(config.EncryptedClientHelloKeys, key)
		}
	}

	// Called at the end of every handshake that gets so far, rejected ECH included.
	config.VerifyConnection = func(state tls.ConnectionState) error {
		deployed.Report("handshake", map[string]any{
			"ech": state.ECHAccepted, "server_name": state.ServerName, "alpn": state.NegotiatedProtocol, "version": tls.VersionName(state.Version),
		})
		return nil
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	if *cutAfter >= 0 {
		listener = &cuttingListener{listener, *cutAfter}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(strings.Contains(*alpn, "h2"))
	web := &http.Server{Handler: s, TLSConfig: config, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(complaints{}, "", 0)}
	go s.sayGoAway()
	deployed.Report("listening", map[string]any{"address": listener.Addr().String()})
	// Not ServeTLS, which would add to the protocols.
	log.Fatal(web.Serve(tls.NewListener(listener, config)))
}

// cuttingListener's connections end in the middle of what is written.
type cuttingListener struct {
	net.Listener
	after int
}

func (l *cuttingListener) Accept() (net.Conn, error) {
	connection, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: connection, left: l.after}, nil
}

type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(p []byte) (int, error) {
	if len(p) < c.left {
		c.left -= len(p)
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:c.left])
	c.left = 0
	_ = c.Close()
	return n, net.ErrClosed
}

// complaints reports what net/http logs: handshakes that failed, above all.
type complaints struct{}

func (complaints) Write(p []byte) (int, error) {
	deployed.Report("complaint", map[string]any{"text": strings.TrimSpace(string(p))})
	return len(p), nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	protocol := r.Header.Get("Sec-WebSocket-Protocol")
	allowed := s.token == "" || protocol == s.token
	if s.tokenIn == "path" {
		allowed = strings.Trim(r.URL.Path, "/") == s.token
	}
	if !allowed || !websocket.IsWebSocketUpgrade(r) {
		deployed.Report("decoy", map[string]any{"path": r.URL.Path, "host": r.Host, "protocol": r.Proto, "upgrade": websocket.IsWebSocketUpgrade(r)})
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, decoy)
		return
	}
	header := http.Header{}
	switch {
	case s.tokenIn == "header" && protocol != "":
		header.Set("Sec-WebSocket-Protocol", protocol)
	case s.tokenIn == "path" && s.echo == "empty":
		header["Sec-WebSocket-Protocol"] = []string{""}
	}
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }, ReadBufferSize: relayBuffer, WriteBufferSize: relayBuffer}
	socket, err := upgrader.Upgrade(w, r, header)
	if err != nil {
		deployed.Report("upgrade-failed", map[string]any{"error": err.Error()})
		return
	}
	defer socket.Close()
	s.serve(socket)
}

func (s *server) serve(socket *websocket.Conn) {
	kind, first, err := socket.NextReader()
	if err != nil {
		deployed.Report("closed", map[string]any{"error": err.Error()})
		return
	}
	start := make([]byte, 1)
	if _, err := io.ReadFull(first, start); err != nil {
		deployed.Report("closed", map[string]any{"error": "empty first message"})
		return
	}
	if kind == websocket.BinaryMessage && start[0] == 0 {
		deployed.Report("session", map[string]any{"mode": "yamux"})
		s.serveYamux(deployed.NewStream(socket, io.MultiReader(bytes.NewReader(start), first)))
		return
	}
	rest, err := io.ReadAll(io.LimitReader(first, preambleMax))
	if err != nil {
		return
	}
	request, ok := strings.CutPrefix(string(start)+string(rest), "CONNECT:")
	if !ok {
		deployed.Report("protocol-error", map[string]any{"first": string(start) + string(rest)})
		return
	}
	deployed.Report("session", map[string]any{"mode": "simple"})
	s.serveSimple(socket, request)
}

func (s *server) serveYamux(stream *deployed.Stream) {
	session, err := yamux.Server(stream, deployed.YamuxConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	s.sessions.Store(session, nil)
	defer s.sessions.Delete(session)
	for {
		accepted, err := session.AcceptStream()
		if err != nil {
			deployed.Report("session-end", map[string]any{"error": err.Error()})
			return
		}
		go s.serveStream(accepted)
	}
}

// sayGoAway has every session take no new streams, whenever the process gets SIGUSR1. The deployed server never does so by itself.
func (s *server) sayGoAway() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	for range asked {
		s.sessions.Range(func(session, _ any) bool {
			err := session.(*yamux.Session).GoAway()
			deployed.Report("go-away", map[string]any{"sent": err == nil})
			return true
		})
	}
}

func (s *server) serveStream(stream *yamux.Stream) {
	defer stream.Close()
	// The address has to be in the first data frame: one read, as the deployed server does it.
	buffer := make([]byte, preambleMax)
	n, err := stream.Read(buffer)
	if err != nil {
		return
	}
	address, early, found := strings.Cut(string(buffer[:n]), "\n")
	if !found {
		deployed.Report("protocol-error", map[string]any{"first": string(buffer[:n])})
		return
	}
	deployed.Report("stream", map[string]any{"target": address, "early": len(early)})
	target, err := s.dial(address)
	if err != nil {
		return
	}
	defer target.Close()
	if _, err := io.WriteString(target, early); err != nil {
		return
	}
	done := make(chan struct{}, 2)
	go func() { s.copy(target, stream, nil); done <- struct{}{} }()
	go func() { s.copy(stream, target, stream.Session().Close); done <- struct{}{} }()
	// Either end closes both.
	<-done
}

func (s *server) serveSimple(socket *websocket.Conn, request string) {
	address, early, _ := strings.Cut(request, "|")
	deployed.Report("stream", map[string]any{"target": address, "early": len(early)})
	target, err := s.dial(address)
	if err != nil {
		_ = socket.WriteMessage(websocket.TextMessage, []byte("ERROR:"+err.Error()))
		return
	}
	defer target.Close()
	if err := socket.WriteMessage(websocket.TextMessage, []byte("CONNECTED")); err != nil {
		return
	}
	if _, err := io.WriteString(target, early); err != nil {
		return
	}
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			_, message, err := socket.ReadMessage()
			// The deployed server looks for the word in any message, text or binary.
			if err != nil || string(message) == "CLOSE" {
				return
			}
			if _, err := target.Write(message); err != nil {
				return
			}
		}
	}()
	go func() {
		s.copy(deployed.NewStream(socket, nil), target, socket.Close)
		_ = socket.WriteMessage(websocket.TextMessage, []byte("CLOSE"))
		done <- struct{}{}
	}()
	<-done
}

func (s *server) dial(address string) (net.Conn, error) {
	time.Sleep(s.dialDelay)
	target, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		deployed.Report("dial-failed", map[string]any{"target": address, "error": err.Error()})
	}
	return target, err
}

// copy relays until either side ends; cut is called when the flag -close-after says so.
func (s *server) copy(to io.Writer, from io.Reader, cut func() error) {
	buffer := make([]byte, relayBuffer)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
			if cut != nil && s.closeAfter > 0 && s.relayed.Add(int64(n)) >= s.closeAfter {
				deployed.Report("cut", nil)
				_ = cut()
				os.Exit(0)
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				log.Print(err)
			}
			return
		}
	}
}
