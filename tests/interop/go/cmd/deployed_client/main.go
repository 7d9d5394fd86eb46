// The deployed client, from its wire protocol: TLS with ECH, the token as WebSocket protocol, yamux or simple mode. It runs
// one job over several streams at a time and reports what came back.
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"

	"ech-workers.example/interop/deployed"
)

type client struct {
	server, name, path, token, mode string
	tls                             *tls.Config
	session                         *yamux.Session
	mutex                           sync.Mutex
}

func main() {
	log.SetFlags(log.Lmicroseconds)
	c := &client{tls: &tls.Config{MinVersion: tls.VersionTLS13}}
	flag.StringVar(&c.server, "server", "", "ADDRESS:PORT to connect to")
	flag.StringVar(&c.name, "server-name", "", "the server's (inner) name")
	flag.StringVar(&c.path, "path", "/", "the WebSocket's path")
	flag.StringVar(&c.token, "token", "", "the token, sent as Sec-WebSocket-Protocol")
	flag.StringVar(&c.mode, "mode", "yamux", "yamux or simple")
	ech := flag.String("ech", "", "ECHConfigList in base64; empty: without ECH")
	ca := flag.String("ca", "", "PEM file of trusted authorities")
	fetch := flag.String("fetch", "", "http://HOST:PORT/PATH to fetch")
	echo := flag.String("echo", "", "HOST:PORT that sends back what it gets")
	size := flag.Int64("size", 10<<20, "bytes for -echo")
	streams := flag.Int("streams", 1, "how many at a time")
	curves := flag.String("curves", "", "names of the groups to offer, with commas; empty: Go's own")
	flag.Parse()

	var err error
	if c.tls.CurvePreferences, err = deployed.Curves(*curves); err != nil {
		log.Fatal(err)
	}
	c.tls.ServerName = c.name
	if *ca != "" {
		text, err := os.ReadFile(*ca)
		if err != nil {
			log.Fatal(err)
		}
		c.tls.RootCAs = x509.NewCertPool()
		c.tls.RootCAs.AppendCertsFromPEM(text)
	}
	if *ech != "" {
		configs, err := base64.StdEncoding.DecodeString(*ech)
		if err != nil {
			log.Fatal(err)
		}
		c.tls.EncryptedClientHelloConfigList = configs
	}

	failed := make(chan error, *streams)
	for range *streams {
		go func() {
			if *fetch != "" {
				failed <- c.fetch(*fetch)
			} else {
				failed <- c.echo(*echo, *size)
			}
		}()
	}
	code := 0
	for range *streams {
		if err := <-failed; err != nil {
			fields := map[string]any{"error": err.Error()}
			var rejection *tls.ECHRejectionError
			if errors.As(err, &rejection) {
				fields["retry_configs"] = base64.StdEncoding.EncodeToString(rejection.RetryConfigList)
			}
			deployed.Report("failed", fields)
			code = 1
		}
	}
	os.Exit(code)
}

func (c *client) dial() (*websocket.Conn, error) {
	dialer := websocket.Dialer{
		HandshakeTimeout: 15 * time.Second,
		ReadBufferSize:   32 << 10,
		WriteBufferSize:  32 << 10,
		NetDialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			connection, err := (&tls.Dialer{Config: c.tls}).DialContext(ctx, network, c.server)
			if err != nil {
				return nil, err
			}
			state := connection.(*tls.Conn).ConnectionState()
			deployed.Report("handshake", map[string]any{"ech": state.ECHAccepted, "alpn": state.NegotiatedProtocol})
			return connection, nil
		},
	}
	if c.token != "" {
		dialer.Subprotocols = []string{c.token}
	}
	_, port, err := net.SplitHostPort(c.server)
	if err != nil {
		return nil, err
	}
	socket, response, err := dialer.Dial(fmt.Sprintf("wss://%s:%s%s", c.name, port, c.path), nil)
	if err != nil {
		if response != nil {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
			return nil, fmt.Errorf("%w: %s: %s", err, response.Status, body)
		}
		return nil, err
	}
	deployed.Report("upgraded", map[string]any{"protocol": socket.Subprotocol(), "headers": response.Header})
	if socket.Subprotocol() != c.token {
		return nil, fmt.Errorf("the server chose the protocol %q", socket.Subprotocol())
	}
	return socket, nil
}

// open returns a connection to the target, the same way for both modes.
func (c *client) open(target string) (io.ReadWriteCloser, error) {
	if c.mode == "simple" {
		return c.openSimple(target)
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.session == nil {
		socket, err := c.dial()
		if err != nil {
			return nil, err
		}
		if c.session, err = yamux.Client(deployed.NewStream(socket, nil), deployed.YamuxConfig()); err != nil {
			return nil, err
		}
	}
	stream, err := c.session.OpenStream()
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(stream, target+"\n"); err != nil {
		return nil, err
	}
	return stream, nil
}

func (c *client) openSimple(target string) (io.ReadWriteCloser, error) {
	socket, err := c.dial()
	if err != nil {
		return nil, err
	}
	if err := socket.WriteMessage(websocket.TextMessage, []byte("CONNECT:"+target+"|")); err != nil {
		return nil, err
	}
	kind, answer, err := socket.ReadMessage()
	if err != nil {
		return nil, err
	}
	if kind != websocket.TextMessage || string(answer) != "CONNECTED" {
		return nil, fmt.Errorf("the server answered %q", answer)
	}
	return &simple{Stream: deployed.NewStream(socket, nil), socket: socket}, nil
}

// simple ends its connection with the word CLOSE.
type simple struct {
	*deployed.Stream
	socket *websocket.Conn
}

func (s *simple) Close() error {
	_ = s.socket.WriteMessage(websocket.TextMessage, []byte("CLOSE"))
	return s.socket.Close()
}

func (c *client) fetch(url string) error {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	started := time.Now()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			stream, err := c.open(address)
			if err != nil {
				return nil, err
			}
			return &netConn{ReadWriteCloser: stream}, nil
		},
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, response.Body)
	if err != nil {
		return err
	}
	deployed.Report("fetched", map[string]any{"status": response.StatusCode, "bytes": n, "sha256": hex.EncodeToString(hash.Sum(nil)), "ms": time.Since(started).Milliseconds()})
	return nil
}

func (c *client) echo(target string, size int64) error {
	started := time.Now()
	stream, err := c.open(target)
	if err != nil {
		return err
	}
	defer stream.Close()
	sent, received := sha256.New(), sha256.New()
	written := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.MultiWriter(stream, sent), io.LimitReader(rand.Reader, size))
		written <- err
	}()
	n, err := io.CopyN(received, stream, size)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, size, err)
	}
	if err := <-written; err != nil {
		return err
	}
	there, back := hex.EncodeToString(sent.Sum(nil)), hex.EncodeToString(received.Sum(nil))
	deployed.Report("echoed", map[string]any{"bytes": n, "sent": there, "received": back, "equal": there == back, "ms": time.Since(started).Milliseconds()})
	if there != back {
		return errors.New(strings.Join([]string{"sent", there, "received", back}, " "))
	}
	return nil
}

// netConn is what net/http wants of a connection; deadlines and addresses are not used.
type netConn struct{ io.ReadWriteCloser }

func (*netConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*netConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*netConn) SetDeadline(time.Time) error      { return nil }
func (*netConn) SetReadDeadline(time.Time) error  { return nil }
func (*netConn) SetWriteDeadline(time.Time) error { return nil }
